//! The user's cluster, on the user's own rights: the thin edge to the API server.
//!
//! Every request but the page's watch goes through `Cluster::send`, which sees what kube's client drops: the warnings of an
//! answer, and the API server's clock.

use std::ffi::OsString;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SelfSubjectRulesReview,
    SelfSubjectRulesReviewSpec, SubjectRulesReviewStatus,
};
use k8s_openapi::api::core::v1::Namespace;
use keywright_core::declaration::is_dns_subdomain;
use keywright_core::proxy::proxy_for;
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ObjectList, Status, request};
use kube::{Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::failure::{ApiError, Attempt, Failure};

/// How long an answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take in all, whatever trickles in.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most octets of an answer: an etcd holds no page of objects that is larger.
const LARGEST_ANSWER: usize = 128 << 20;
/// The most characters of a refusal that is no Status.
const LONGEST_REFUSAL: usize = 200;
/// Objects that are asked for at once.
const PAGE: u32 = 500;
/// Clocks that differ by less are one clock: a `Date` has no fractions, and its answer took a while.
const SAME_CLOCK: SignedDuration = SignedDuration::from_secs(3);

/// Which cluster, and as whom.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClusterOptions {
    /// The kubeconfig file. Default: KUBECONFIG, then ~/.kube/config
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig. Default: its current one
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// The namespace. Default: that of the context
    #[arg(long, short, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub namespace: Option<String>,
}

/// The user's cluster.
pub struct Cluster {
    client: Client,
    config: Config,
    /// How people call the cluster: its name in the kubeconfig.
    pub name: String,
    /// The namespace that commands work in.
    pub namespace: String,
    /// How far the API server's clock is ahead of ours, in seconds.
    ahead: AtomicI64,
    zone: TimeZone,
}

/// What the API server has answered.
#[derive(Debug)]
pub struct Answer<T> {
    /// The object, or the list.
    pub value: T,
    /// What it warns of. Not made safe for a terminal.
    pub warnings: Vec<String>,
}

impl Cluster {
    /// The cluster that the options mean. Nothing is asked yet.
    ///
    /// # Errors
    /// A kubeconfig that is not there, or cannot be used.
    pub async fn connect(options: &ClusterOptions) -> Result<Self, Failure> {
        let unusable =
            |error: &dyn std::fmt::Display| Failure::usage(format!("The kubeconfig cannot be used: {error}."));
        let file = match options.kubeconfig.clone().or_else(kubeconfig_on_windows) {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let file = file.map_err(|error| unusable(&error))?;
        let name = cluster_name(&file, options.context.as_deref()).unwrap_or_else(|| "this cluster".to_owned());
        let choice = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
        let has_own_proxy = has_own_proxy(&file, &name);
        let mut config = Config::from_custom_kubeconfig(file, &choice).await.map_err(|error| unusable(&error))?;
        if !has_own_proxy {
            // Kube compares NO_PROXY with the proxy's own name.
            let proxy = proxy_for(&config.cluster_url, |name| std::env::var(name).ok());
            config.proxy_url = proxy.map_err(|error| Failure::usage(error.to_string()))?;
        }
        // A request that is tried again by itself may be carried out minutes after it was decided.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        if !is_dns_subdomain(&namespace) {
            return Err(Failure::usage("The namespace is no DNS name: write a to z, 0 to 9 and hyphens."));
        }
        let mut requesting = config.clone();
        requesting.read_timeout = Some(REQUEST_TIMEOUT);
        requesting.write_timeout = Some(REQUEST_TIMEOUT);
        requesting.reset_reader_on_write = true;
        let client = Client::try_from(requesting).map_err(|error| unusable(&error))?;
        Ok(Self { client, config, name, namespace, ahead: AtomicI64::new(0), zone: TimeZone::system() })
    }

    /// A client for watches, whose answers may take as long as they bring something now and then.
    ///
    /// # Errors
    /// A kubeconfig that cannot be used.
    pub fn watching(&self, silence: Duration) -> Result<Client, Failure> {
        let mut watching = self.config.clone();
        watching.read_timeout = Some(silence);
        watching.reset_reader_on_write = true;
        Client::try_from(watching).map_err(|error| Failure::usage(format!("The kubeconfig cannot be used: {error}.")))
    }

    /// The API server's time, in the user's zone.
    pub fn now(&self) -> Zoned {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        let now = Timestamp::now();
        now.saturating_add(ahead).unwrap_or(now).to_zoned(self.zone.clone())
    }

    /// What was tried, for the sentence about why it brought nothing.
    pub fn attempt<'a>(&'a self, verb: &'a str, resource: &'a str, namespace: &'a str, name: &'a str) -> Attempt<'a> {
        Attempt { verb, resource, name, namespace, cluster: &self.name }
    }

    /// Who the API server takes the user for.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn user(&self) -> Result<String, ApiError> {
        let review = self.post::<SelfSubjectReview>("", &SelfSubjectReview::default()).await?;
        let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
        user.ok_or_else(|| ApiError::Unreadable("a review without a user".to_owned()))
    }

    /// Whether the user may do that.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn may(&self, action: ResourceAttributes) -> Result<bool, ApiError> {
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(action), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let review = self.post::<SelfSubjectAccessReview>("", &review).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    /// What the user may do in a namespace, as far as the API server's authorizers list rules.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn rules(&self, namespace: &str) -> Result<SubjectRulesReviewStatus, ApiError> {
        let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) };
        let review = SelfSubjectRulesReview { spec, ..Default::default() };
        let review = self.post::<SelfSubjectRulesReview>("", &review).await?;
        review.status.ok_or_else(|| ApiError::Unreadable("a review without an answer".to_owned()))
    }

    /// The names of all namespaces. `None` if the user may not see them, or if there are more than `most`.
    pub async fn namespaces(&self, most: u32) -> Option<Vec<String>> {
        let request = request::Request::new(Namespace::url_path(&(), None)).list(&ListParams::default().limit(most));
        let list = self.send::<ObjectList<Namespace>>(built(request).ok()?).await.ok()?.value;
        let is_all = list.metadata.continue_.is_none_or(|token| token.is_empty());
        is_all.then(|| list.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    }

    /// One object.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn get<K: Namespaced>(&self, namespace: &str, name: &str) -> Result<K, ApiError> {
        let path = path::<K>(Some(namespace), Some(name))?;
        read(self.send(built(request::Request::new(path).get(name, &GetParams::default()))?).await?.value)
    }

    /// One object, if it is there.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn find<K: Namespaced>(&self, namespace: &str, name: &str) -> Result<Option<K>, ApiError> {
        match self.get(namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects that the parameters select, page by page: of one namespace, or of all.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn list<K: Namespaced>(
        &self,
        namespace: Option<&str>,
        selected: &ListParams,
    ) -> Result<Vec<K>, ApiError> {
        let request = request::Request::new(path::<K>(namespace, None)?);
        let mut objects = Vec::new();
        let mut selected = selected.clone().limit(PAGE);
        loop {
            let page = self.send::<ObjectList<Value>>(built(request.list(&selected))?).await?.value;
            for object in page.items {
                objects.push(read(object)?);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => selected.continue_token = Some(token),
                None => return Ok(objects),
            }
        }
    }

    /// Makes an object, or has the API server say whether it would.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create<K: Namespaced>(
        &self,
        namespace: &str,
        object: &Value,
        dry_run: bool,
    ) -> Result<Answer<K>, ApiError> {
        let parameters = PostParams { dry_run, ..PostParams::default() };
        let path = path::<K>(Some(namespace), None)?;
        self.send(built(request::Request::new(path).create(&parameters, bytes_of(object)?))?).await?.read()
    }

    /// Changes an object by a merge patch, which is to hold the `metadata.resourceVersion` that it was made for.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::is_conflict`] if the object has changed meanwhile.
    pub async fn patch<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Answer<K>, ApiError> {
        let path = path::<K>(Some(namespace), Some(name))?;
        let patch = request::Request::new(path).patch(name, &PatchParams::default(), &Patch::Merge(patch));
        self.send(built(patch)?).await?.read()
    }

    /// Deletes the object with this uid, and no other one of its name.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::is_conflict`] if that object is gone and another one has its name.
    pub async fn delete<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Answer<Value>, ApiError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let path = path::<K>(Some(namespace), Some(name))?;
        self.send(built(request::Request::new(path).delete(name, &parameters))?).await
    }

    async fn send<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<Answer<T>, ApiError> {
        let answered = async {
            let response = self.client.send(request.map(Body::from)).await.map_err(|error| unreachable(&error))?;
            let (head, body) = response.into_parts();
            self.heed(&head.headers);
            Ok((head, collected(body, LARGEST_ANSWER).await?))
        };
        let late = |_| ApiError::Unreachable(format!("no answer in {} s", PATIENCE.as_secs()));
        let (head, body) = timeout(PATIENCE, answered).await.map_err(late)??;
        if !head.status.is_success() {
            return Err(refusal(head.status.as_u16(), &body));
        }
        let value = serde_json::from_slice(&body).map_err(|error| ApiError::Unreadable(error.to_string()))?;
        Ok(Answer { value, warnings: warnings(&head.headers) })
    }

    async fn post<K>(&self, namespace: &str, object: &K) -> Result<K, ApiError>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let object = serde_json::to_value(object).map_err(|error| ApiError::Unreadable(error.to_string()))?;
        let path = K::url_path(&(), Some(namespace).filter(|namespace| !namespace.is_empty()));
        let request = request::Request::new(path).create(&PostParams::default(), bytes_of(&object)?);
        Ok(self.send(built(request)?).await?.value)
    }

    /// Notes the API server's clock.
    fn heed(&self, headers: &HeaderMap) {
        let date = headers.get("date").and_then(|date| date.to_str().ok());
        if let Some(ahead) = date.and_then(|date| seconds_ahead(date, Timestamp::now())) {
            self.ahead.store(ahead, Ordering::Relaxed);
        }
    }
}

impl Answer<Value> {
    fn read<K: DeserializeOwned>(self) -> Result<Answer<K>, ApiError> {
        Ok(Answer { value: read(self.value)?, warnings: self.warnings })
    }
}

/// A kind of object that lives in namespaces.
pub trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned
{
}

impl<K> Namespaced for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned
{
}

/// The path to one object, or to all of a namespace, or to all. Kube takes names into it as they are, and a name could be a path of
/// its own, or a query. What is no DNS name is the name of no object.
fn path<K: Namespaced>(namespace: Option<&str>, name: Option<&str>) -> Result<String, ApiError> {
    match namespace.into_iter().chain(name).all(is_dns_subdomain) {
        true => Ok(K::url_path(&(), namespace)),
        false => Err(ApiError::Refused(Status::failure("this is no DNS name", "NotFound").with_code(404).boxed())),
    }
}

/// Reads an object: without its status, if that cannot be read. Others may have written there what the API server accepts and
/// no `Timestamp` can hold, and one such object must not hide the rest. The controller rewrites it.
///
/// # Errors
/// [`ApiError::Unreadable`] names the object.
pub fn read<K: DeserializeOwned>(mut object: Value) -> Result<K, ApiError> {
    if let Ok(read) = K::deserialize(&object) {
        return Ok(read);
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    K::deserialize(&object).map_err(|error| ApiError::Unreadable(format!("{}: {error}", full_name(&object))))
}

/// `team-a/ci`
fn full_name(object: &Value) -> String {
    let field = |path: &str| object.pointer(path).and_then(Value::as_str);
    let names: Vec<_> = [field("/metadata/namespace"), field("/metadata/name")].into_iter().flatten().collect();
    if names.is_empty() { "an object without a name".to_owned() } else { names.join("/") }
}

fn cluster_name(file: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let context = context.or(file.current_context.as_deref())?;
    let named = file.contexts.iter().find(|named| named.name == context)?;
    Some(named.context.as_ref()?.cluster.clone())
}

/// Whether the kubeconfig names a proxy for the cluster.
fn has_own_proxy(file: &Kubeconfig, cluster: &str) -> bool {
    let named = file.clusters.iter().find(|named| named.name == cluster).and_then(|named| named.cluster.as_ref());
    named.is_some_and(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()))
}

fn built(request: Result<Request<Vec<u8>>, request::Error>) -> Result<Request<Vec<u8>>, ApiError> {
    request.map_err(|error| ApiError::Refused(Status::failure(&error.to_string(), "BadRequest").with_code(400).boxed()))
}

fn bytes_of(object: &Value) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(object).map_err(|error| ApiError::Unreadable(error.to_string()))
}

/// A body of at most so many octets.
async fn collected(body: Body, most: usize) -> Result<Vec<u8>, ApiError> {
    let collected = Limited::new(body, most).collect().await;
    collected.map(|body| body.to_bytes().into()).map_err(|error| match error.is::<LengthLimitError>() {
        true => ApiError::Unreadable(format!("it has more than {} MiB", most >> 20)),
        false => unreachable(&*error),
    })
}

fn unreachable(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::Unreachable(innermost(error).to_string())
}

/// The innermost cause: what lies around it says only that something failed.
pub fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(inner) = error.source() {
        error = inner;
    }
    error
}

/// The kubeconfig that kubectl finds on Windows if nobody names one. Kube knows one home there, and kubectl three.
fn kubeconfig_on_windows() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if !cfg!(windows) || variable("KUBECONFIG").is_some() {
        return None;
    }
    kubeconfigs_at_home(variable).into_iter().find(|path| path.exists())
}

/// Where kubectl looks on Windows, in its order.
fn kubeconfigs_at_home(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let on_drive = variable("HOMEDRIVE").zip(variable("HOMEPATH")).map(|(mut home, path)| {
        home.push(path);
        home
    });
    let homes = [variable("HOME"), on_drive, variable("USERPROFILE")];
    homes.into_iter().flatten().map(|home| PathBuf::from(home).join(".kube").join("config")).collect()
}

/// A path that the API server does not know is answered with no Status, or with one that names no object.
fn refusal(code: u16, body: &[u8]) -> ApiError {
    let Ok(status) = serde_json::from_slice::<Status>(body) else {
        if code == 404 {
            return ApiError::NotInstalled;
        }
        return ApiError::Refused(Status::failure(&beginning(body), "").with_code(code).boxed());
    };
    let names_an_object = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    if code == 404 && !names_an_object {
        return ApiError::NotInstalled;
    }
    ApiError::Refused(status.with_code(code).boxed())
}

/// How a text begins, in one line: a proxy may answer with a whole page.
fn beginning(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.get(..8 * LONGEST_REFUSAL).unwrap_or(text));
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST_REFUSAL).collect()
}

/// How far the clock of a `Date` header is ahead of ours, in seconds.
fn seconds_ahead(date: &str, now: Timestamp) -> Option<i64> {
    let ahead = rfc2822::parse(date).ok()?.timestamp().duration_since(now);
    Some(if ahead.abs() < SAME_CLOCK { 0 } else { ahead.as_secs() })
}

/// The texts of the `Warning` headers (RFC 7234, 5.5): `299 - "text"`.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all("warning").iter().filter_map(|value| str::from_utf8(value.as_bytes()).ok());
    values.map(warning_text).collect()
}

fn warning_text(value: &str) -> String {
    let quoted = value.split_once('"').map_or(value, |(_, rest)| rest).trim_end();
    quoted.strip_suffix('"').unwrap_or(quoted).replace("\\\"", "\"").replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use keywright_core::api::ApiKey;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_wrote_into_a_status_hides_no_object() {
        for (time, is_kept) in
            [("2026-11-29T13:05:00Z", true), ("9999-12-31T23:59:59Z", false), ("2026-11-29T13:05:00+99:99", false)]
        {
            let object = json!({
                "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"namespace": "team-a", "name": "ci"},
                "spec": {"owner": "ann@x"}, "status": {"serial": 1, "lastUsedAt": time},
            });
            let key = read::<ApiKey>(object).unwrap();
            assert_eq!((key.spec.owner.as_deref(), key.status.is_some()), (Some("ann@x"), is_kept), "{time}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (object, named) in [
            (json!({"metadata": {"namespace": "team-a", "name": "ci"}, "spec": {"owner": 1}}), "team-a/ci: "),
            (json!({"metadata": {"name": "ci"}, "spec": []}), "ci: "),
            (json!("ci"), "an object without a name: "),
        ] {
            let error = read::<ApiKey>(object).unwrap_err();
            assert!(matches!(&error, ApiError::Unreadable(why) if why.starts_with(named)), "{error:?}");
        }
    }

    #[test]
    fn a_missing_resource_is_no_missing_object() {
        let missing = br#"{"kind":"Status","reason":"NotFound","code":404,"message":"apikeys \"ci\" not found","details":{"name":"ci","kind":"apikeys"}}"#;
        assert!(matches!(refusal(404, missing), ApiError::Refused(_)));
        assert!(matches!(refusal(404, b"404 page not found\n"), ApiError::NotInstalled));
        let unnamed = br#"{"kind":"Status","reason":"NotFound","code":404,"message":"the server could not find the requested resource","details":{}}"#;
        assert!(matches!(refusal(404, unnamed), ApiError::NotInstalled));
    }

    #[test]
    fn a_page_of_a_proxy_is_cut_to_a_line() {
        for (body, shown) in [
            (" no\nsuch\r\n  backend\n".to_owned(), "no such backend".to_owned()),
            (format!("<html>{}", "é".repeat(100_000)), format!("<html>{}", "é".repeat(194))),
        ] {
            let ApiError::Refused(status) = refusal(502, body.as_bytes()) else { panic!("not refused") };
            assert_eq!((status.code, &status.message), (502, &shown));
        }
    }

    #[tokio::test]
    async fn an_answer_may_not_be_of_any_size() {
        assert_eq!(collected(Body::from(vec![1; 10]), 10).await.unwrap(), [1; 10]);
        let error = collected(Body::from(vec![1; 11]), 10).await.unwrap_err();
        assert!(matches!(&error, ApiError::Unreadable(why) if why.starts_with("it has more than ")), "{error:?}");
    }

    #[test]
    fn what_is_no_name_becomes_no_path() {
        let collection = "/apis/keywright.dev/v1alpha1/namespaces/team-a/apikeys";
        assert_eq!(path::<ApiKey>(Some("team-a"), Some("nightly.ci-2")).unwrap(), collection);
        assert_eq!(path::<ApiKey>(None, None).unwrap(), "/apis/keywright.dev/v1alpha1/apikeys");
        for (namespace, name) in [
            ("x/../team-c", "ci"),
            ("team-c/apikeys?dryRun=All&x=", "ci"),
            ("", "ci"),
            ("team-a", ""),
            ("team-a", ".."),
            ("team-a", "ci/status"),
            ("team-a", "ci?watch=1"),
            ("team-a", "ci%2fstatus"),
            ("team-a", "ci#"),
            ("team-a", "Ci"),
        ] {
            let error = path::<ApiKey>(Some(namespace), Some(name)).unwrap_err();
            assert!(error.is_not_found(), "{namespace} {name}");
        }
    }

    #[test]
    fn the_clock_that_counts_is_the_api_server_s() {
        let now = "2026-11-29T13:05:00.9Z".parse().unwrap();
        for (date, ahead) in [
            ("Sun, 29 Nov 2026 13:05:00 GMT", Some(0)),
            ("Sun, 29 Nov 2026 13:04:58 GMT", Some(0)),
            ("Sun, 29 Nov 2026 13:10:01 GMT", Some(300)),
            ("Sun, 29 Nov 2026 12:05:00 GMT", Some(-3600)),
            ("soon", None),
        ] {
            assert_eq!(seconds_ahead(date, now), ahead, "{date}");
        }
    }

    #[test]
    fn windows_has_three_homes() {
        let found = |set: &[(&str, &str)]| {
            let variable = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            kubeconfigs_at_home(variable).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            found(&[("USERPROFILE", "C:/Users/ann"), ("HOMEPATH", "/ann"), ("HOMEDRIVE", "H:"), ("HOME", "D:/ann")]),
            ["D:/ann/.kube/config", "H:/ann/.kube/config", "C:/Users/ann/.kube/config"]
        );
        assert_eq!(found(&[("HOMEPATH", "/ann")]), Vec::<String>::new());
    }

    #[test]
    fn a_warning_is_its_text() {
        assert_eq!(warning_text("299 - \"team-a/ci: say \\\"30d\\\"\""), "team-a/ci: say \"30d\"");
    }
}
