//! Who may do what: every ServiceAccount of the chart and every role for tenants, asked for every resource and every verb that
//! the API server knows, against `tests/rights.tsv`, which people review. `make rights` writes that file anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures::StreamExt;
use futures::stream::iter;
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role, RoleBinding};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use keywright_testing::{ControlPlane, Installation, output, project, wait};

/// Beside those that discovery tells of: what some resources are also asked for, and everything at once.
const OTHER_VERBS: [&str; 8] = ["approve", "attest", "bind", "escalate", "impersonate", "sign", "use", "*"];

/// What rights can be given to without its being served.
const NOT_SERVED: [(&str, &str, Scope); 7] = [
    ("", "users", Scope::Cluster),
    ("", "groups", Scope::Cluster),
    ("authentication.k8s.io", "uids", Scope::Cluster),
    ("authentication.k8s.io", "userextras", Scope::Cluster),
    ("certificates.k8s.io", "signers", Scope::Cluster),
    // Asked for by OwnerReferencesPermissionEnforcement.
    ("keywright.dev", "apikeys/finalizers", Scope::Namespaces),
    ("*", "*", Scope::Namespaces),
];

const PATHS: [&str; 6] = ["/", "/debug/pprof", "/logs", "/metrics", "/metrics/slis", "*"];

/// As people list verbs.
const USUAL_ORDER: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// Reviews under way at a time.
const CONCURRENCY: usize = 32;

/// Everything that can be asked for.
struct Surface {
    resources: Resources,
    /// Every verb of any of them.
    verbs: BTreeSet<String>,
    /// The names that the chart's rules are limited to.
    names: BTreeSet<(Resource, String)>,
    paths: BTreeSet<String>,
}

/// Where each is, and what can be asked of it.
type Resources = BTreeMap<Resource, (Scope, BTreeSet<String>)>;

/// Its group, empty for the core's, and its name, with its subresource where it is one: `apikeys/status`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Resource {
    group: String,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Cluster,
    System,
    Tenant,
    /// Of a resource: it is in namespaces. Of a right: never.
    Namespaces,
}

/// May somebody do this? Or, where the API server has said so: somebody may do this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    scope: Scope,
    what: What,
    verb: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Any(Resource),
    Named(Resource, String),
    Path(String),
}

/// Whom the API server is asked about, and who else, so that what Kubernetes grants to others alike does not count.
struct Subject {
    title: String,
    user: String,
    compared_with: String,
    groups: Vec<String>,
    /// Bound in the tenant's namespace only: a RoleBinding reaches nowhere else.
    tenant: bool,
}

#[tokio::test]
async fn rights_are_those_that_were_reviewed() {
    let installation = Installation::new("rights").await;
    install_tenant_roles(installation.control_plane).await;
    let surface = Surface::discover(&installation).await;
    let mut found = String::from(HEADER);
    for subject in subjects(&installation).await {
        let mut lines = BTreeMap::<_, Vec<String>>::new();
        for Right { scope, what, verb } in surface.rights(&installation, &subject).await {
            lines.entry((scope, what.title())).or_default().push(verb);
        }
        for ((scope, what), mut verbs) in lines {
            verbs.sort_by_key(|verb| USUAL_ORDER.iter().position(|usual| usual == verb).unwrap_or(USUAL_ORDER.len()));
            let scope = format!("{scope:?}").to_lowercase();
            let what = what.replace(&installation.tenant_namespace, "RELEASE");
            found += &format!("{}\t{scope}\t{what}\t{}\n", subject.title, verbs.join(" "));
        }
    }
    let path = project().join("tests/rights.tsv");
    if std::env::var_os("KEYWRIGHT_WRITE_RIGHTS").is_some() {
        std::fs::write(path, found).unwrap();
        return;
    }
    let reviewed = std::fs::read_to_string(path).unwrap();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (found, reviewed) = (lines(&found), lines(&reviewed));
    let more: Vec<_> = found.difference(&reviewed).map(|line| format!("+ {line}")).collect();
    let less: Vec<_> = reviewed.difference(&found).map(|line| format!("- {line}")).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "rights differ from tests/rights.tsv; if they are to, `make rights` and have it reviewed:\n{}\n{}",
        less.join("\n"),
        more.join("\n")
    );
}

const HEADER: &str = "\
# Who may do what, as the API server answers. `make rights` writes this file; a test compares.
# scope: cluster is everywhere, or what is in no namespace; system is Keywright's namespace; tenant is the namespace where the
# role is bound. What is limited to one object has its name in brackets. What everybody may is left out; of view, edit and
# admin, so is what Kubernetes gives them. Admission policies limit some of it further: docs/security.md.
# who\tscope\twhat\tverbs
";

/// What the verbs and names in the chart's rules say must exist: a right to nothing is a mistake, and a wildcard is a right to
/// what nobody has thought of.
#[tokio::test]
async fn rules_name_what_there_is_and_nothing_more() {
    let installation = Installation::new("rules").await;
    let served = served(&installation.client).await;
    let mut count = 0;
    for rule in rules(&installation).await.iter().chain(&tenant_rules(installation.control_plane)) {
        count += 1;
        assert!(rule.non_resource_urls.is_none(), "{rule:?}");
        for group in rule.api_groups.iter().flatten() {
            for name in rule.resources.iter().flatten() {
                let resource = Resource { group: group.clone(), name: name.clone() };
                if NOT_SERVED
                    .iter()
                    .any(|(group, name, _)| *group == resource.group && *name == resource.name && *name != "*")
                {
                    continue;
                }
                let (_, verbs) = served.get(&resource).unwrap_or_else(|| panic!("there is no {resource:?}: {rule:?}"));
                for verb in &rule.verbs {
                    assert!(verbs.contains(verb), "{resource:?} has no {verb}: {rule:?}");
                }
            }
        }
    }
    assert!(count >= 8, "the chart's rules are not where they were: {count}");
}

#[tokio::test]
async fn tenants_roles_join_others_only_where_they_are_asked_to() {
    let control_plane = ControlPlane::shared().await;
    let joined = |values: &str| -> BTreeMap<String, Vec<String>> {
        let roles = tenant_roles(control_plane, values).into_iter();
        roles
            .map(|role| {
                let labels = role["metadata"]["labels"].as_object().unwrap().iter();
                let joined = labels.filter(|(name, value)| name.starts_with("rbac.authorization") && **value == "true");
                (role["metadata"]["name"].as_str().unwrap().to_owned(), joined.map(|(name, _)| name.clone()).collect())
            })
            .collect()
    };
    let to = |role: &str| vec![format!("rbac.authorization.k8s.io/aggregate-to-{role}")];
    let (view, edit, admin) = ("keywright-view".to_owned(), "keywright-edit".to_owned(), "keywright-admin".to_owned());
    let default = [(view.clone(), to("view")), (edit.clone(), vec![]), (admin.clone(), to("admin"))];
    assert_eq!(joined("crds.install=false"), default.into());
    let asked = [(view.clone(), to("view")), (edit.clone(), to("edit")), (admin.clone(), to("admin"))];
    assert_eq!(joined("tenantRoles.aggregateToEdit=true"), asked.into());
    let alone = [(view, vec![]), (edit, vec![]), (admin, vec![])];
    assert_eq!(joined("tenantRoles.aggregateToView=false,tenantRoles.aggregateToAdmin=false"), alone.into());
    assert!(joined("tenantRoles.enabled=false").is_empty());
}

impl Surface {
    async fn discover(installation: &Installation) -> Self {
        let mut resources = served(&installation.client).await;
        for (resource, (_, verbs)) in &mut resources {
            // The others are about whole objects.
            let others = if resource.name.contains('/') { &["*"] } else { &OTHER_VERBS[..] };
            verbs.extend(others.iter().map(ToString::to_string));
        }
        let verbs: BTreeSet<_> = resources.values().flat_map(|(_, verbs)| verbs.clone()).collect();
        for (group, name, scope) in NOT_SERVED {
            let resource = Resource { group: group.to_owned(), name: name.to_owned() };
            resources.insert(resource, (scope, verbs.clone()));
        }
        assert!(resources.len() > 100 && verbs.len() >= 16, "{} resources, {verbs:?}", resources.len());
        let mut names = BTreeSet::new();
        for rule in rules(installation).await {
            for group in rule.api_groups.iter().flatten() {
                for name in rule.resources.iter().flatten() {
                    let resource = Resource { group: group.clone(), name: name.clone() };
                    names.extend(rule.resource_names.iter().flatten().map(|name| (resource.clone(), name.clone())));
                }
            }
        }
        let root: Value =
            installation.client.request(hyper::Request::get("/").body(Vec::new()).unwrap()).await.unwrap();
        let listed = root["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned());
        let paths = listed.chain(PATHS.iter().map(ToString::to_string)).collect();
        Self { resources, verbs, names, paths }
    }

    /// What the subject may and whoever it is compared with may not.
    async fn rights(&self, installation: &Installation, subject: &Subject) -> BTreeSet<Right> {
        let right = |scope, what, verb: &str| Right { scope, what, verb: verb.to_owned() };
        let mut questions = BTreeSet::new();
        for (resource, (scope, verbs)) in &self.resources {
            let places: &[Scope] = match (scope, subject.tenant) {
                (Scope::Namespaces, true) => &[Scope::Tenant],
                (Scope::Namespaces, false) => &[Scope::System, Scope::Tenant],
                (_, true) => &[],
                (_, false) => &[Scope::Cluster],
            };
            let asked = places.iter().flat_map(|place| verbs.iter().map(move |verb| (place, verb)));
            questions.extend(asked.map(|(place, verb)| right(*place, What::Any(resource.clone()), verb)));
        }
        for (resource, name) in &self.names {
            let places = [Scope::System, Scope::Tenant, Scope::Cluster].into_iter();
            let asked = places.flat_map(|place| self.verbs.iter().map(move |verb| (place, verb)));
            questions
                .extend(asked.map(|(place, verb)| right(place, What::Named(resource.clone(), name.clone()), verb)));
        }
        for path in &self.paths {
            questions.extend(["get", "post", "*"].map(|verb| right(Scope::Cluster, What::Path(path.clone()), verb)));
        }
        let allowed = async |user, questions| allowed(installation, user, &subject.groups, questions).await;
        let mut rights = allowed(&subject.user, questions).await;
        let everybodys = allowed(&subject.compared_with, rights.clone()).await;
        rights = &rights - &everybodys;
        // What is allowed in every namespace is said once, and so is what is allowed whatever the name.
        let elsewhere = rights.iter().map(|right| Right { scope: Scope::Cluster, ..right.clone() }).collect();
        rights.extend(allowed(&subject.user, elsewhere).await);
        let is_said = |right: &Right| {
            let wider = |scope, what| rights.contains(&Right { scope, what, verb: right.verb.clone() });
            let any = |scope| matches!(&right.what, What::Named(of, _) if wider(scope, What::Any(of.clone())));
            any(right.scope)
                || right.scope != Scope::Cluster && (any(Scope::Cluster) || wider(Scope::Cluster, right.what.clone()))
        };
        rights.iter().filter(|right| !is_said(right)).cloned().collect()
    }
}

/// Those of the questions that the API server answers with yes.
async fn allowed(
    installation: &Installation,
    user: &str,
    groups: &[String],
    questions: BTreeSet<Right>,
) -> BTreeSet<Right> {
    let reviews = Api::<SubjectAccessReview>::all(installation.client.clone());
    let asked = questions.into_iter().map(async |right| {
        let spec = SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            groups: Some(groups.to_vec()),
            resource_attributes: right.resource_attributes(installation),
            non_resource_attributes: match &right.what {
                What::Path(path) => {
                    Some(NonResourceAttributes { path: Some(path.clone()), verb: Some(right.verb.clone()) })
                }
                _ => None,
            },
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None };
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        answer.status.unwrap().allowed.then_some(right)
    });
    iter(asked).buffer_unordered(CONCURRENCY).filter_map(async |right| right).collect().await
}

impl Right {
    fn resource_attributes(&self, installation: &Installation) -> Option<ResourceAttributes> {
        let (resource, object) = match &self.what {
            What::Any(resource) => (resource, None),
            What::Named(resource, name) => (resource, Some(name.clone())),
            What::Path(_) => return None,
        };
        let (name, subresource) = resource.name.split_once('/').unwrap_or((&resource.name, ""));
        Some(ResourceAttributes {
            group: Some(resource.group.clone()),
            resource: Some(name.to_owned()),
            subresource: Some(subresource.to_owned()),
            name: object,
            namespace: match self.scope {
                Scope::System => Some(installation.system_namespace.clone()),
                Scope::Tenant => Some(installation.tenant_namespace.clone()),
                Scope::Cluster | Scope::Namespaces => None,
            },
            verb: Some(self.verb.clone()),
            ..ResourceAttributes::default()
        })
    }
}

impl What {
    fn title(&self) -> String {
        match self {
            Self::Any(Resource { group, name }) if group.is_empty() => name.clone(),
            Self::Any(Resource { group, name }) => format!("{group}/{name}"),
            Self::Named(resource, name) => format!("{} [{name}]", Self::Any(resource.clone()).title()),
            Self::Path(path) => format!("the path {path}"),
        }
    }
}

/// Every ServiceAccount of the chart, and a person for each role, bound in the tenant's namespace.
async fn subjects(installation: &Installation) -> Vec<Subject> {
    let system = &installation.system_namespace;
    let own = ListParams::default().labels("app.kubernetes.io/name=keywright");
    let accounts = installation.system::<ServiceAccount>().list(&own).await.unwrap();
    let mut subjects: Vec<_> = accounts
        .into_iter()
        .map(|account| Subject {
            title: account.name_any(),
            user: format!("system:serviceaccount:{system}:{}", account.name_any()),
            groups: ["system:serviceaccounts", &format!("system:serviceaccounts:{system}"), "system:authenticated"]
                .map(str::to_owned)
                .into(),
            compared_with: format!("system:serviceaccount:{system}:nobody"),
            tenant: false,
        })
        .collect();
    assert!(subjects.len() >= 2);
    for (role, alike) in [
        ("keywright-view", &[][..]),
        ("keywright-edit", &[]),
        ("keywright-admin", &[]),
        // What Kubernetes itself aggregates into each.
        ("view", &["view"]),
        ("edit", &["view", "edit"]),
        ("admin", &["view", "edit", "admin"]),
    ] {
        let (user, compared_with) = (format!("bound-to-{role}"), format!("compared-with-{role}"));
        bind(installation, role, &user).await;
        for part in alike {
            bind(installation, &format!("system:aggregate-to-{part}"), &compared_with).await;
        }
        let groups = vec!["system:authenticated".to_owned()];
        subjects.push(Subject { title: role.to_owned(), user, groups, compared_with, tenant: true });
    }
    subjects
}

async fn bind(installation: &Installation, role: &str, user: &str) {
    let binding = json!({
        "metadata": {"generateName": "rights-"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    let binding = serde_json::from_value(binding).unwrap();
    installation.tenant::<RoleBinding>().create(&PostParams::default(), &binding).await.unwrap();
}

/// The rules of the chart's roles, as they are installed.
async fn rules(installation: &Installation) -> Vec<PolicyRule> {
    let own = format!("app.kubernetes.io/instance={}", installation.tenant_namespace);
    let own = ListParams::default().labels(&own);
    let roles = installation.system::<Role>().list(&own).await.unwrap();
    let cluster_roles = Api::<ClusterRole>::all(installation.client.clone()).list(&own).await.unwrap();
    let rules = roles.into_iter().map(|role| role.rules).chain(cluster_roles.into_iter().map(|role| role.rules));
    rules.flatten().flatten().collect()
}

fn tenant_rules(control_plane: &ControlPlane) -> Vec<PolicyRule> {
    let roles = tenant_roles(control_plane, "crds.install=false").into_iter();
    roles.flat_map(|role| serde_json::from_value::<Vec<PolicyRule>>(role["rules"].clone()).unwrap()).collect()
}

fn tenant_roles(control_plane: &ControlPlane, values: &str) -> Vec<Value> {
    let mut helm = control_plane.helm(["template", "keywright"]);
    let rendered = output(helm.arg(chart()).args(["--namespace", "keywright-system", "--set", values])).unwrap();
    let objects = serde_yaml::Deserializer::from_str(&rendered).map(serde::Deserialize::deserialize);
    let objects = objects.map(Result::unwrap).filter(|object: &Value| object["kind"] == "ClusterRole");
    objects.filter(|object| !object["metadata"]["name"].as_str().unwrap().contains(':')).collect()
}

fn chart() -> PathBuf {
    project().join("charts/keywright")
}

/// Their names are the same for all installations, so they are there once for all tests.
async fn install_tenant_roles(control_plane: &ControlPlane) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": tenant_roles(control_plane, "crds.install=false")});
    let file = control_plane.write_private("tenant-roles.json", &list.to_string());
    output(control_plane.kubectl(["apply", "--filename"]).arg(file)).unwrap();
    let roles = Api::<ClusterRole>::all(control_plane.client().await);
    for name in ["view", "edit", "admin"] {
        wait::for_object(&roles, name, |role: &ClusterRole| {
            let groups = role.rules.iter().flatten().flat_map(|rule| rule.api_groups.iter().flatten());
            groups.into_iter().any(|group| group == "keywright.dev")
        })
        .await;
    }
}

/// Every resource of every group, in whichever version.
async fn served(client: &Client) -> Resources {
    let mut lists = vec![(String::new(), client.list_core_api_resources("v1").await.unwrap())];
    for group in client.list_api_groups().await.unwrap().groups {
        for version in group.versions {
            let list = client.list_api_group_resources(&version.group_version).await.unwrap();
            lists.push((group.name.clone(), list));
        }
    }
    let mut served = Resources::new();
    for (group, list) in lists {
        for resource in list.resources {
            let scope = if resource.namespaced { Scope::Namespaces } else { Scope::Cluster };
            let key = Resource { group: group.clone(), name: resource.name };
            served.entry(key).or_insert((scope, BTreeSet::new())).1.extend(resource.verbs);
        }
    }
    served
}
