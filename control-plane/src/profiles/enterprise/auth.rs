//! Login and refresh, as the document has them: whoever has no token yet may call.

use futures_util::future::BoxFuture;
use hyper::header::USER_AGENT;
use pagoda_http::reply::Reply;
use serde::{Deserialize, Serialize};

use super::envelope::success;
use crate::http::call::Call;
use crate::http::route::Failure;
use crate::operations::logins::{LoggedIn, Offered, log_in};
use crate::operations::refresh;

type Answered = BoxFuture<'static, Result<Reply, Failure>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    /// A user name or an e-mail address.
    username: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Refresh {
    refresh_token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tokens {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    expires_in: i64,
}

/// `POST /api/v1/auth/login`
pub(super) fn login(call: Call) -> Answered {
    Box::pin(async move {
        let (context, Login { username, password }) = call.read::<Login>().await?;
        let user_agent = context.headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
        let user_agent = user_agent.unwrap_or_default();
        let offered = Offered { name: &username, password: &password, user_agent };
        let logged_in = log_in(&context.operations, &context.actor, offered).await?;
        Ok(success(&tokens(logged_in)))
    })
}

/// `POST /api/v1/auth/refresh`
pub(super) fn refresh(call: Call) -> Answered {
    Box::pin(async move {
        let (context, Refresh { refresh_token }) = call.read::<Refresh>().await?;
        let logged_in =
            refresh::refresh(&context.operations, &context.actor, &refresh_token).await?;
        Ok(success(&tokens(logged_in)))
    })
}

fn tokens(logged_in: LoggedIn) -> Tokens {
    Tokens {
        access_token: logged_in.access_token,
        refresh_token: logged_in.refresh_token,
        token_type: "Bearer",
        expires_in: logged_in.expires_in_s,
    }
}
