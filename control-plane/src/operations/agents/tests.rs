//! Agents against a real Postgres.

use super::*;
use crate::operations::text::field;
use crate::test_database::TestDatabase;

fn new(name: &str, category: &str) -> NewAgent {
    NewAgent {
        name: field("name", name).unwrap(),
        description: Text::default(),
        provider: Provider::Local,
        model: field("model", "default").unwrap(),
        system_prompt: field("system_prompt", "{{ 7 * 7 }} {% for x in y %}").unwrap(),
        parameters: Parameters::new(Map::from_iter([("temperature".into(), json!(0.5))])).unwrap(),
        category: field("category", category).unwrap(),
        capabilities: vec![field("capabilities", "text_generation").unwrap()],
        is_active: true,
    }
}

#[tokio::test]
async fn agents_are_made_listed_changed_and_published() {
    let test = TestDatabase::new().unwrap();
    let (database, actor) = (test.database(), Actor::operator());
    let writer = create(database, &actor, new("writer", "写作助手")).await.unwrap();
    assert_eq!(writer.revision, Some(1));
    let coder = create(database, &actor, new("coder", "code")).await.unwrap().value;
    let twice = create(database, &actor, new("coder", "code")).await.unwrap_err();
    assert_eq!(twice, Fault::Conflict("another agent has this name".into()));

    let change = AgentChange {
        is_active: Some(false),
        parameters: Some(Parameters::default()),
        ..AgentChange::default()
    };
    let off = update(database, &actor, coder.id, change).await.unwrap();
    assert_eq!(off.revision, Some(3));
    assert!(!off.value.is_active && off.value.parameters.is_empty() && off.value.name == "coder");
    let taken = AgentChange { name: Some(field("name", "writer").unwrap()), ..Default::default() };
    let taken = update(database, &actor, coder.id, taken).await.unwrap_err();
    assert!(matches!(taken, Fault::Conflict(_)));

    let page = Window::page(1, 10).unwrap();
    let filters = [
        (AgentFilter::default(), 2),
        (AgentFilter { is_active: Some(true), ..Default::default() }, 1),
        (AgentFilter { category: Some(field("c", "code").unwrap()), ..Default::default() }, 1),
        // A wildcard is a letter.
        (AgentFilter { category: Some(field("c", "%").unwrap()), ..Default::default() }, 0),
        (AgentFilter { provider: Some(Provider::Dify), ..Default::default() }, 0),
    ];
    for (filter, count) in filters {
        let listed = list(database, &filter, page).await.unwrap();
        assert_eq!((listed.items.len(), listed.total), (count, count as u64), "{filter:?}");
    }
    assert_eq!(find(database, coder.id, true).await, Err(Fault::NotFound("agent")));
    assert_eq!(find(database, coder.id, false).await, Ok(off.value));
    let many = vec![field("capabilities", "x").unwrap(); 33];
    let many = AgentChange { capabilities: Some(many), ..AgentChange::default() };
    assert!(update(database, &actor, coder.id, many).await.is_err());
}

#[tokio::test]
async fn attack_21_a_prompt_is_text_all_the_way() {
    let test = TestDatabase::new().unwrap();
    let (database, actor) = (test.database(), Actor::operator());
    let made = create(database, &actor, new("a", "b")).await.unwrap().value;
    assert_eq!(made.system_prompt, "{{ 7 * 7 }} {% for x in y %}");
    let client = database.client().await.unwrap();
    let items = records(&**client).await.unwrap();
    let [Item::Agent(record)] = &items[..] else { panic!("{items:?}") };
    assert_eq!(record.system_prompt, made.system_prompt);
}
