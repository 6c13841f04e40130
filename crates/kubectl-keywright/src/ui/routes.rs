//! What can be asked of the page's server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use keywright_core::api::ApiKey;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use zeroize::Zeroizing;

use super::assets::ASSETS;
use super::change::{self, NotChanged};
use super::details::{Details, Users};
use super::feed::{self, Message};
use super::form::{Checked, Edit, NewKey, Problem, usual_owner};
use super::rights::Rights;
use super::session::{Door, HEADERS, Session};
use crate::change::NotWritten;
use crate::cluster::Cluster;
use crate::events;
use crate::failure::{ApiError, Attempt};
use crate::session::replaced;
use crate::view::hint::Hint;
use crate::workloads::Workloads;

/// Bytes of the longest request body: 256 addresses and a description are less.
const LONGEST_BODY: usize = 64 * 1024;
/// Tabs that are kept up to date at once. Each is a watch on the API server, and one of the six connections that browsers have
/// to one address.
const MOST_FEEDS: usize = 4;
/// Messages that wait for a slow tab.
const QUEUE: usize = 16;
/// Bytes of an answer that holds a key: enough, so that it is never moved.
const KEY_ANSWER: usize = 128 * 1024;
/// Namespaces that are offered. Where there are more, one is typed.
const MOST_NAMESPACES: u32 = 500;

/// What the page's server works with.
pub struct Page {
    cluster: Arc<Cluster>,
    session: Session,
    feeds: Arc<Semaphore>,
}

/// Why something was not answered, for people.
#[derive(Debug, Serialize)]
struct Problems {
    #[serde(skip)]
    status: u16,
    message: String,
    fields: Vec<Problem>,
}

type Answer<T> = Result<T, Problems>;

/// One ApiKey, by the path of a request.
type Named = Path<(String, String)>;

#[derive(Deserialize)]
struct Token {
    token: String,
}

#[derive(Deserialize)]
struct Where {
    namespace: String,
}

#[derive(Deserialize)]
struct Meant {
    uid: String,
}

/// Who looks at what.
#[derive(Serialize)]
struct Scene {
    user: Option<String>,
    owner: Option<String>,
    cluster: String,
    namespace: String,
    namespaces: Option<Vec<String>>,
    may: Rights,
    words: Option<String>,
    /// Why each hint matters.
    hints: BTreeMap<&'static str, &'static str>,
    now: i64,
}

impl Page {
    /// A page about this cluster, for this session.
    pub fn new(cluster: Cluster, session: Session) -> Self {
        Self { cluster: Arc::new(cluster), session, feeds: Arc::new(Semaphore::new(MOST_FEEDS)) }
    }

    fn attempt<'a>(&'a self, verb: &'a str, namespace: &'a str, name: &'a str) -> Attempt<'a> {
        self.cluster.attempt(verb, "apikeys", namespace, name)
    }
}

/// All routes, each behind its door.
pub fn router(page: Arc<Page>) -> Router {
    let api = Router::new()
        .route("/api/session", get(scene))
        .route("/api/feed", get(follow))
        .route("/api/check", post(check))
        .route("/api/keys", post(create))
        .route("/api/keys/{namespace}/{name}", get(details))
        .route("/api/keys/{namespace}/{name}/users", get(users))
        .route("/api/keys/{namespace}/{name}/check", post(check_edit))
        .route("/api/keys/{namespace}/{name}/edit", post(edit))
        .route("/api/keys/{namespace}/{name}/rotate", post(rotate))
        .route("/api/keys/{namespace}/{name}/revoke", post(revoke));
    let files = ASSETS.iter().fold(Router::new(), |files, asset| {
        let content = Bytes::from(asset.lean());
        files.route(asset.path, get(([(header::CONTENT_TYPE, asset.content_type)], content)))
    });
    Router::new()
        .merge(api)
        .route("/session", post(begin))
        .merge(files)
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(from_fn_with_state(page.clone(), guard))
        .with_state(page)
}

/// Lets in whoever may, and gives every answer its headers.
async fn guard(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let door = match request.uri().path() {
        "/session" => Door::Token,
        path if ASSETS.iter().any(|asset| asset.path == path) => Door::Open,
        _ => Door::Session,
    };
    let mut response = match page.session.judge(door, request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => Problems::new(refusal.status(), refusal.to_string()).into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

async fn begin(State(page): State<Arc<Page>>, Json(given): Json<Token>) -> Answer<Response> {
    let begun = page.session.begin(&given.token).ok_or_else(|| {
        Problems::new(401, "This address was used already, or is old. Run kubectl keywright ui again.".to_owned())
    })?;
    let body = Json(json!({"proof": begun.proof.as_str()}));
    Ok(([(header::SET_COOKIE, begun.cookie)], body).into_response())
}

async fn scene(State(page): State<Arc<Page>>, Query(asked): Query<HashMap<String, String>>) -> Answer<Json<Scene>> {
    let cluster = &page.cluster;
    let namespace = asked.get("namespace").unwrap_or(&cluster.namespace);
    let (user, rights, namespaces) =
        futures::join!(cluster.user(), Rights::ask(cluster, namespace), cluster.namespaces(MOST_NAMESPACES));
    let may = rights.map_err(|error| Problems::api(&page.attempt("list", namespace, ""), &error))?;
    let user = user.ok();
    Ok(Json(Scene {
        owner: user.as_deref().and_then(usual_owner).map(str::to_owned),
        user,
        cluster: cluster.name.clone(),
        namespace: cluster.namespace.clone(),
        namespaces,
        words: may.words(),
        hints: Hint::ALL.into_iter().map(|hint| (hint.word(), hint.why())).collect(),
        may,
        now: cluster.now().timestamp().as_second(),
    }))
}

async fn follow(State(page): State<Arc<Page>>, Query(asked): Query<Where>) -> Answer<Response> {
    let permit = page.feeds.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Problems::new(429, "Too many tabs are open: close one.".to_owned()))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let cluster = page.cluster.clone();
    tokio::spawn(async move {
        feed::follow(cluster, asked.namespace, sender).await;
        drop(permit);
    });
    let messages = futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    let lines = messages.map(|message: Message| {
        let mut line = serde_json::to_vec(&message)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn check(State(page): State<Arc<Page>>, Json(form): Json<NewKey>) -> Json<Checked> {
    Json(form.check(None, page.cluster.now().timestamp()))
}

async fn create(State(page): State<Arc<Page>>, Json(form): Json<NewKey>) -> Answer<Response> {
    let created = change::create(&page.cluster, &form, page.cluster.now().timestamp()).await;
    let created = created.map_err(|error| {
        Problems::change(&page.attempt("create", &form.namespace, form.name.as_deref().unwrap_or_default()), error)
    })?;
    // What holds a key is wiped once it is sent.
    let mut body = Zeroizing::new(Vec::with_capacity(KEY_ANSWER));
    serde_json::to_writer(&mut *body, &created).map_err(|error| Problems::new(500, error.to_string()))?;
    let body = Body::from(Bytes::from_owner(body));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn details(State(page): State<Arc<Page>>, Path((namespace, name)): Named) -> Answer<Json<Details>> {
    let key = found(&page, &namespace, &name).await?;
    let uid = key.metadata.uid.clone().unwrap_or_default();
    let events = events::about(&page.cluster, &namespace, &uid).await;
    Ok(Json(Details::of(&key, events, &page.cluster.now())))
}

async fn users(State(page): State<Arc<Page>>, Path((namespace, name)): Named) -> Answer<Json<Users>> {
    let (key, workloads) = futures::join!(found(&page, &namespace, &name), Workloads::read(&page.cluster, &namespace));
    Ok(Json(Users::of(&key?, &workloads, &namespace, &page.cluster.now())))
}

async fn check_edit(State(page): State<Arc<Page>>, Json(form): Json<Edit>) -> Json<Checked> {
    Json(form.check(page.cluster.now().timestamp()))
}

async fn edit(
    State(page): State<Arc<Page>>,
    Path((namespace, name)): Named,
    Json(form): Json<Edit>,
) -> Answer<Response> {
    let checked = form.check(page.cluster.now().timestamp());
    let edited = match checked.problems.is_empty() {
        true => change::edit(&page.cluster, (&namespace, &name), &form, &checked.spec).await,
        false => Err(NotChanged::Problems(checked.problems)),
    };
    done(&page, "patch", &namespace, &name, edited)
}

async fn rotate(
    State(page): State<Arc<Page>>,
    Path((namespace, name)): Named,
    Json(meant): Json<Meant>,
) -> Answer<Response> {
    let rotated = change::rotate(&page.cluster, (&namespace, &name), &meant.uid).await;
    done(&page, "patch", &namespace, &name, rotated)
}

async fn revoke(
    State(page): State<Arc<Page>>,
    Path((namespace, name)): Named,
    Json(meant): Json<Meant>,
) -> Answer<Response> {
    let revoked = change::revoke(&page.cluster, (&namespace, &name), &meant.uid).await;
    done(&page, "delete", &namespace, &name, revoked)
}

fn done(page: &Page, verb: &str, namespace: &str, name: &str, result: Result<(), NotChanged>) -> Answer<Response> {
    result.map_err(|error| Problems::change(&page.attempt(verb, namespace, name), error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn found(page: &Page, namespace: &str, name: &str) -> Answer<ApiKey> {
    let found = page.cluster.get(namespace, name).await;
    found.map_err(|error| Problems::api(&page.attempt("get", namespace, name), &error))
}

impl Problems {
    fn new(status: u16, message: String) -> Self {
        Self { status, message, fields: Vec::new() }
    }

    /// What the API server has said, at the fields that it blames.
    fn api(attempt: &Attempt<'_>, error: &ApiError) -> Self {
        let (status, fields) = match error {
            ApiError::Refused(status) => (status.code, blamed(status)),
            ApiError::NotInstalled => (404, Vec::new()),
            ApiError::Unreachable(_) | ApiError::Unreadable(_) => (502, Vec::new()),
        };
        // The browser's own 401 is for its session alone.
        let status = if status == 401 { 403 } else { status };
        Self { status, message: attempt.sentence(error), fields }
    }

    fn change(attempt: &Attempt<'_>, error: NotChanged) -> Self {
        match error {
            NotChanged::NotWritten(NotWritten::Refused(error)) => Self::api(attempt, &error),
            NotChanged::NotWritten(NotWritten::Unknown(error)) => {
                let problem = Self::api(attempt, &error);
                let message =
                    format!("{} Whether it was done is not known. Look before you try again.", problem.message);
                Self { message, ..problem }
            }
            NotChanged::NotWritten(NotWritten::Replaced) => Self::new(409, replaced(attempt.name)),
            NotChanged::Problems(fields) => {
                Self { status: 422, message: "Something is missing or wrong.".to_owned(), fields }
            }
            NotChanged::Words(words) => Self::new(409, words),
            NotChanged::AlreadyAsked => Self::new(409, "Somebody has asked for it already.".to_owned()),
            NotChanged::Outdated => {
                let words = "Somebody has changed this key meanwhile: press Cancel, look, and change it again.";
                Self::new(409, words.to_owned())
            }
        }
    }
}

fn blamed(status: &kube::core::Status) -> Vec<Problem> {
    if status.reason == "AlreadyExists" {
        return vec![Problem::of("name", "There is already an API key of that object name: press Edit and change it.")];
    }
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.filter(|cause| !cause.field.is_empty()).map(|cause| Problem::at(&cause.field, &cause.message)).collect()
}

impl IntoResponse for Problems {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(json!({"message": self.message, "fields": self.fields}))).into_response()
    }
}
