//! What the user may do with the ApiKeys of a namespace.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, ResourceRule};
use keywright_core::api::GROUP;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::failure::ApiError;

/// What the user may do with the ApiKeys of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rights {
    /// Create them.
    pub create: bool,
    /// Edit and rotate them.
    pub edit: bool,
    /// Revoke them.
    pub revoke: bool,
}

/// Each right and its verb.
const VERBS: [&str; 3] = ["create", "patch", "delete"];

impl Rights {
    /// Asks the API server. For all namespaces (empty) and where its rules are incomplete, verb by verb.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn ask(cluster: &Cluster, namespace: &str) -> Result<Self, ApiError> {
        if !namespace.is_empty() {
            let review = cluster.rules(namespace).await?;
            let known = Self::in_rules(&review.resource_rules);
            if !review.incomplete || known == Self::of(|_| true) {
                return Ok(known);
            }
        }
        let [create, edit, revoke] = VERBS.map(|verb| cluster.may(action(verb, namespace)));
        let (create, edit, revoke) = futures::try_join!(create, edit, revoke)?;
        Ok(Self { create, edit, revoke })
    }

    /// What rules allow.
    fn in_rules(rules: &[ResourceRule]) -> Self {
        Self::of(|verb| rules.iter().any(|rule| allows(rule, verb)))
    }

    fn of(may: impl Fn(&str) -> bool) -> Self {
        let [create, edit, revoke] = VERBS.map(may);
        Self { create, edit, revoke }
    }

    /// What to say about the rights that are missing.
    pub fn words(self) -> Option<String> {
        let all = [(self.create, "create"), (self.edit, "edit or rotate"), (self.revoke, "revoke")];
        let missing: Vec<_> = all.into_iter().filter(|(may, _)| !may).map(|(_, what)| what).collect();
        match missing.len() {
            0 => None,
            3 => Some("You may look, not change: ask for keywright-admin.".to_owned()),
            _ => Some(format!("You may not {} API keys here: ask for keywright-admin.", missing.join(" or "))),
        }
    }
}

fn action(verb: &str, namespace: &str) -> ResourceAttributes {
    ResourceAttributes {
        group: Some(GROUP.to_owned()),
        resource: Some("apikeys".to_owned()),
        verb: Some(verb.to_owned()),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        ..ResourceAttributes::default()
    }
}

/// A rule for single objects allows nothing that holds for all of them.
fn allows(rule: &ResourceRule, verb: &str) -> bool {
    let has =
        |list: Option<&[String]>, word: &str| list.is_some_and(|list| list.iter().any(|one| one == "*" || one == word));
    has(rule.api_groups.as_deref(), GROUP)
        && has(rule.resources.as_deref(), "apikeys")
        && has(Some(&rule.verbs), verb)
        && rule.resource_names.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn rules_say_what_may_be_done() {
        let rule = |groups: Value, resources: Value, verbs: Value| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
        let all = ["keywright.dev"];
        for (rules, [create, edit, revoke]) in [
            (json!([]), [false; 3]),
            (json!([rule(json!(["*"]), json!(["*"]), json!(["*"]))]), [true; 3]),
            (json!([rule(json!(all), json!(["apikeys"]), json!(["get", "list", "watch"]))]), [false; 3]),
            (
                json!([
                    rule(json!(all), json!(["apikeys"]), json!(["create"])),
                    rule(json!(all), json!(["*"]), json!(["delete"]))
                ]),
                [true, false, true],
            ),
            (json!([rule(json!([""]), json!(["apikeys"]), json!(["*"]))]), [false; 3]),
            (json!([rule(json!(all), json!(["apikeyrecords"]), json!(["*"]))]), [false; 3]),
            (
                json!([{"apiGroups": all, "resources": ["apikeys"], "verbs": ["*"], "resourceNames": ["ci"]}]),
                [false; 3],
            ),
        ] {
            let read: Vec<ResourceRule> = serde_json::from_value(rules.clone()).unwrap();
            assert_eq!(Rights::in_rules(&read), Rights { create, edit, revoke }, "{rules}");
        }
    }

    #[test]
    fn a_missing_right_is_one_line() {
        let rights = |create, edit, revoke| Rights { create, edit, revoke }.words();
        assert_eq!(rights(true, true, true), None);
        assert_eq!(rights(false, false, false).as_deref(), Some("You may look, not change: ask for keywright-admin."));
        let one = "You may not revoke API keys here: ask for keywright-admin.";
        assert_eq!(rights(true, true, false).as_deref(), Some(one));
    }
}
