//! Which instance a name means, and whose name is about to change.
//!
//! Requests read one list that is swapped whole, so a name means the old instance or the new one
//! and never neither. Whoever changes what a name means holds a claim on it meanwhile; a second
//! one is refused, and a claim that is dropped leaves all as it was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::api::error::ApiError;
use crate::api::instance::Instance;

/// The instances of a process, by name.
#[derive(Default)]
pub struct Models {
    served: RwLock<Arc<[Arc<Instance>]>>,
    claimed: Mutex<HashMap<String, Change>>,
}

/// What is about to happen to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A model is loaded that nobody serves under it yet.
    Load,
    /// A model is loaded that takes the place of the one that is served.
    Replace,
    /// Its model goes.
    Unload,
}

impl Change {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Change::Load => "loading",
            Change::Replace => "being replaced",
            Change::Unload => "being unloaded",
        }
    }
}

/// The right to change what names mean. Dropped without a change, it leaves all as it was.
pub struct Claim {
    models: Arc<Models>,
    names: Vec<String>,
    change: Change,
}

impl Models {
    /// All instances; the first one is the active model.
    pub fn served(&self) -> Arc<[Arc<Instance>]> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a model is loading under a name that nobody serves yet; `None` asks for any name.
    pub fn is_loading(&self, name: Option<&str>) -> bool {
        let claimed = self.claimed();
        match name {
            Some(name) => claimed.get(name) == Some(&Change::Load),
            None => claimed.values().any(|change| *change == Change::Load),
        }
    }

    /// Names that are about to change, sorted.
    pub fn changing(&self) -> Vec<(String, Change)> {
        let claimed = self.claimed();
        let mut all: Vec<_> =
            claimed.iter().map(|(name, change)| (name.clone(), *change)).collect();
        all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        all
    }

    /// Claims names for a model that is to be served under them; nobody may have them.
    pub fn claim_new(self: &Arc<Self>, names: Vec<String>) -> Result<Claim, ApiError> {
        let mut claimed = self.claimed();
        unclaimed(&claimed, &names)?;
        let served = self.served();
        match names.iter().find(|name| served.iter().any(|one| one.has_name(name))) {
            Some(name) => Err(ApiError::ModelExists(name.clone())),
            None => Ok(self.claim(&mut claimed, names, Change::Load)),
        }
    }

    /// Claims all names of the instance that is served as `name`; one that nobody serves is claimed
    /// as a new one if it is to be replaced.
    pub fn claim_served(self: &Arc<Self>, name: &str, change: Change) -> Result<Claim, ApiError> {
        let mut claimed = self.claimed();
        let found = self.served().iter().find(|one| one.has_name(name)).cloned();
        let (names, change) = match (found, change) {
            (Some(instance), change) => (instance.names.clone(), change),
            (None, Change::Load | Change::Replace) => (vec![name.to_owned()], Change::Load),
            (None, Change::Unload) => {
                unclaimed(&claimed, &[name.to_owned()])?;
                return Err(ApiError::ModelNotFound(name.to_owned()));
            }
        };
        unclaimed(&claimed, &names)?;
        Ok(self.claim(&mut claimed, names, change))
    }

    fn claim(
        self: &Arc<Self>,
        claimed: &mut HashMap<String, Change>,
        names: Vec<String>,
        change: Change,
    ) -> Claim {
        claimed.extend(names.iter().map(|name| (name.clone(), change)));
        Claim { models: self.clone(), names, change }
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<String, Change>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps the list for what `change` makes of it, and gives the instance that is in it no more.
    fn swap(
        &self,
        change: impl FnOnce(&mut Vec<Arc<Instance>>) -> Option<Arc<Instance>>,
    ) -> Option<Arc<Instance>> {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let mut list = served.to_vec();
        let gone = change(&mut list);
        *served = list.into();
        gone
    }
}

/// Errors unless nobody is changing any of `names`.
fn unclaimed(claimed: &HashMap<String, Change>, names: &[String]) -> Result<(), ApiError> {
    match names.iter().find_map(|name| Some((name, claimed.get(name)?))) {
        None => Ok(()),
        Some((name, change)) => {
            Err(ApiError::ModelChanging { name: name.clone(), change: change.word() })
        }
    }
}

impl Claim {
    /// The names, the first one in answers.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What is about to happen to them.
    pub fn change(&self) -> Change {
        self.change
    }

    /// From now on the names mean `instance`. Gives the one that they meant before, whose requests
    /// go on.
    pub fn serve(self, instance: &Arc<Instance>) -> Option<Arc<Instance>> {
        self.models.swap(|list| match self.place(list) {
            Some(at) => Some(std::mem::replace(&mut list[at], instance.clone())),
            None => {
                list.push(instance.clone());
                None
            }
        })
    }

    /// From now on the names mean nothing. Gives the instance that they meant, whose requests go
    /// on; the claim lasts until it is dropped.
    pub fn withdraw(&self) -> Option<Arc<Instance>> {
        self.models.swap(|list| self.place(list).map(|at| list.remove(at)))
    }

    fn place(&self, list: &[Arc<Instance>]) -> Option<usize> {
        list.iter().position(|one| self.names.iter().any(|name| one.has_name(name)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.models.claimed();
        for name in &self.names {
            claimed.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::test_support::instance;

    fn names(models: &Models) -> Vec<String> {
        models.served().iter().map(|one| one.name().to_owned()).collect()
    }

    fn new(models: &Arc<Models>, name: &str) -> Result<Claim, ApiError> {
        models.claim_new(vec![name.to_owned()])
    }

    #[test]
    fn of_two_who_load_a_name_one_wins_and_the_other_is_told() {
        let models = Arc::new(Models::default());
        let first = new(&models, "a").unwrap();
        let loading = ApiError::ModelChanging { name: "a".into(), change: "loading" };
        assert_eq!(new(&models, "a").err(), Some(loading.clone()));
        assert_eq!(models.claim_served("a", Change::Replace).err(), Some(loading.clone()));
        assert_eq!(models.claim_served("a", Change::Unload).err(), Some(loading));
        assert!(new(&models, "b").is_ok(), "other names are free");
        assert!(models.is_loading(Some("a")) && !models.is_loading(Some("b")));
        assert!(first.serve(&instance(&["a"])).is_none());
        assert_eq!(new(&models, "a").err(), Some(ApiError::ModelExists("a".into())));
        assert!(!models.is_loading(None) && models.changing().is_empty());
    }

    #[test]
    fn a_claim_that_fails_leaves_all_as_it_was() {
        let models = Arc::new(Models::default());
        drop(new(&models, "a").unwrap());
        assert!(names(&models).is_empty() && models.changing().is_empty());
        new(&models, "a").unwrap().serve(&instance(&["a"]));
        let before = models.served();
        drop(models.claim_served("a", Change::Replace).unwrap());
        drop(models.claim_served("a", Change::Unload).unwrap());
        assert!(Arc::ptr_eq(&before[0], &models.served()[0]) && models.changing().is_empty());
    }

    #[test]
    fn a_replaced_model_keeps_its_place_and_all_of_its_names() {
        let models = Arc::new(Models::default());
        let first = instance(&["a", "alias"]);
        models.claim_new(first.names.clone()).unwrap().serve(&first);
        new(&models, "b").unwrap().serve(&instance(&["b"]));
        let claim = models.claim_served("alias", Change::Replace).unwrap();
        assert_eq!((claim.names(), claim.change()), (&first.names[..], Change::Replace));
        assert!(!models.is_loading(Some("a")), "it is served meanwhile");
        let second = instance(&["a", "alias"]);
        let gone = claim.serve(&second).unwrap();
        assert!(Arc::ptr_eq(&gone, &first) && Arc::ptr_eq(&models.served()[0], &second));
        assert_eq!(names(&models), ["a", "b"]);
        let new_one = models.claim_served("c", Change::Replace).unwrap();
        assert_eq!(new_one.change(), Change::Load, "nobody was there to be replaced");
    }

    #[test]
    fn a_model_that_went_is_found_no_more_and_its_name_is_free_when_it_is_gone() {
        let models = Arc::new(Models::default());
        new(&models, "a").unwrap().serve(&instance(&["a"]));
        assert_eq!(
            models.claim_served("x", Change::Unload).err(),
            Some(ApiError::ModelNotFound("x".into()))
        );
        let claim = models.claim_served("a", Change::Unload).unwrap();
        assert!(claim.withdraw().is_some() && claim.withdraw().is_none());
        assert!(names(&models).is_empty());
        let going = ApiError::ModelChanging { name: "a".into(), change: "being unloaded" };
        assert_eq!(new(&models, "a").err(), Some(going.clone()));
        assert_eq!(models.claim_served("a", Change::Unload).err(), Some(going));
        drop(claim);
        assert!(new(&models, "a").is_ok());
    }

    /// Names never mean nothing while they are replaced, whoever else comes and goes.
    #[test]
    fn a_name_always_means_one_instance_while_others_change() {
        let models = Arc::new(Models::default());
        new(&models, "a").unwrap().serve(&instance(&["a"]));
        let spare = [instance(&["a"]), instance(&["a"])];
        let other = instance(&["b"]);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                for round in 0..500 {
                    let claim = models.claim_served("a", Change::Replace).unwrap();
                    claim.serve(&spare[round % 2]);
                }
            });
            scope.spawn(|| {
                for _ in 0..500 {
                    new(&models, "b").unwrap().serve(&other);
                    models.claim_served("b", Change::Unload).unwrap().withdraw().unwrap();
                }
            });
            while !changes.is_finished() {
                let served = models.served();
                assert_eq!(served.iter().filter(|one| one.has_name("a")).count(), 1);
                assert!(served.iter().filter(|one| one.has_name("b")).count() <= 1);
            }
        });
    }
}
