use proptest::prelude::*;
use serde_json::json;

use super::review::PatchOperation;
use super::*;
use crate::api::FINALIZER;

const USER: &str = "ada@example.org";
const DIGEST: &str = "sha256:7777777777777777777777777777777777777777777777777777777777777777";

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// An ApiKey as it is sent.
fn api_key(spec: Value) -> Value {
    json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": "ci"}, "spec": spec})
}

/// An ApiKey as it is stored.
fn stored(spec: Value) -> Value {
    let mut object = api_key(spec);
    object["metadata"]["creationTimestamp"] = json!("2026-11-01T00:00:00Z");
    object["metadata"]["annotations"] = json!({CREATED_BY_ANNOTATION: USER});
    object["metadata"]["finalizers"] = json!([FINALIZER]);
    object
}

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "keywright.dev", "version": "v1alpha1", "kind": "ApiKey"},
            "resource": {"group": "keywright.dev", "version": "v1alpha1", "resource": "apikeys"},
            "name": "ci",
            "namespace": "team-a",
            "operation": operation,
            "userInfo": {"username": USER, "groups": ["system:authenticated"]},
            "object": object,
            "oldObject": old,
            "dryRun": false,
        },
    })
}

/// From bytes to bytes, as the codec does it.
fn ask(phase: Phase, review: &Value) -> Value {
    let body = serde_json::to_vec(review).unwrap();
    let request = Request::read(&body).unwrap();
    let answer: Value = serde_json::from_slice(&request.answer(&judge(phase, &request, now())).unwrap()).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], review["request"]["uid"], "the uid comes back");
    answer["response"].clone()
}

fn verdict(phase: Phase, review: &Value) -> Verdict {
    let body = serde_json::to_vec(review).unwrap();
    judge(phase, &Request::read(&body).unwrap(), now())
}

/// The problems, each as `path: rule`.
fn problems(phase: Phase, review: &Value) -> Vec<String> {
    match verdict(phase, review) {
        Verdict::Invalid(problems) => problems.iter().map(Problem::to_string).collect(),
        Verdict::Allowed { .. } => Vec::new(),
        Verdict::Misdirected(message) => panic!("{message}"),
    }
}

fn whole_warnings(phase: Phase, review: &Value) -> Vec<String> {
    match verdict(phase, review) {
        Verdict::Allowed { warnings, .. } => warnings,
        refused => panic!("{refused:?}"),
    }
}

/// Without the object's name, which all of them begin with.
fn warnings(review: &Value) -> Vec<String> {
    let whole = whole_warnings(Phase::Validating, review);
    whole.iter().map(|warning| warning.strip_prefix("team-a/ci: ").unwrap().to_owned()).collect()
}

/// What the API server does with a patch, for the operations that we send.
fn apply(object: &mut Value, patch: &[PatchOperation]) {
    for PatchOperation { op, path, value } in patch {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let name = name.replace("~1", "/").replace("~0", "~");
        let Some(value) = value else {
            assert_eq!(*op, "remove");
            let removed = object.pointer_mut(parent).and_then(|parent| parent.as_object_mut()?.remove(&name));
            assert!(removed.is_some(), "{path} is not there");
            continue;
        };
        assert_eq!(*op, "add");
        match object.pointer_mut(parent).unwrap_or_else(|| panic!("{parent} is not there")) {
            Value::Object(fields) => drop(fields.insert(name, value.clone())),
            Value::Array(items) if name == "-" => items.push(value.clone()),
            other => panic!("{path} in {other}"),
        }
    }
}

/// The object as `/mutate` leaves it.
fn mutated(review: &Value) -> Value {
    match verdict(Phase::Mutating, review) {
        Verdict::Allowed { patch, .. } => {
            let mut object = review["request"]["object"].clone();
            apply(&mut object, &patch);
            object
        }
        refused => panic!("{refused:?}"),
    }
}

#[test]
fn a_creation_is_completed() {
    let create = |object: &Value| mutated(&review("CREATE", object, &Value::Null));
    let plain = create(&api_key(json!({"expiresIn": "1d"})));
    assert_eq!(plain["spec"], json!({"expiresIn": "1d", "owner": USER}));
    assert_eq!(plain["metadata"]["annotations"], json!({CREATED_BY_ANNOTATION: USER}));
    assert_eq!(plain["metadata"]["finalizers"], json!([FINALIZER]));

    let mut full = api_key(json!({"owner": "team-a"}));
    full["metadata"]["annotations"] = json!({"a/b~c": "d", CREATED_BY_ANNOTATION: "somebody else"});
    full["metadata"]["finalizers"] = json!(["example.org/other"]);
    let full = create(&full);
    assert_eq!(full["spec"]["owner"], "team-a", "an owner that is given stays");
    assert_eq!(full["metadata"]["annotations"], json!({"a/b~c": "d", CREATED_BY_ANNOTATION: USER}));
    assert_eq!(full["metadata"]["finalizers"], json!(["example.org/other", FINALIZER]));

    for empty in [json!({}), json!({CREATED_BY_ANNOTATION: null}), Value::Null] {
        let mut object = api_key(json!({"owner": null}));
        object["metadata"]["annotations"] = empty.clone();
        object["metadata"]["finalizers"] = if empty.is_null() { Value::Null } else { json!([]) };
        let object = create(&object);
        assert_eq!(object["spec"]["owner"], USER);
        assert_eq!(object["metadata"]["annotations"][CREATED_BY_ANNOTATION], USER);
        assert_eq!(object["metadata"]["finalizers"], json!([FINALIZER]));
    }
}

#[test]
fn a_time_of_deletion_in_a_new_object_gets_nobody_around_the_webhook() {
    let mut object = api_key(json!({}));
    object["metadata"]["deletionTimestamp"] = json!("2026-11-23T12:00:00Z");
    let object = mutated(&review("CREATE", &object, &Value::Null));
    assert_eq!(object["metadata"]["annotations"][CREATED_BY_ANNOTATION], USER);
    object["metadata"]["finalizers"].as_array().expect("the finalizer");
    let mut update = review("UPDATE", &stored(json!({"owner": "a b"})), &stored(json!({"owner": "ada"})));
    update["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-11-23T12:00:00Z");
    assert_eq!(problems(Phase::Mutating, &update).len(), 1);
}

#[test]
fn an_update_gets_back_what_it_leaves_out() {
    let old = stored(json!({"owner": "team-a", "expiresIn": "1d"}));
    let mut update = review("UPDATE", &api_key(json!({"expiresIn": "2d"})), &old);
    update["request"]["userInfo"]["username"] = json!("editor");
    let new = mutated(&update);
    assert_eq!(new["spec"], json!({"expiresIn": "2d", "owner": "team-a"}), "the owner it had, and not the editor");
    assert_eq!(new["metadata"]["annotations"][CREATED_BY_ANNOTATION], USER);
    assert_eq!(new["metadata"]["finalizers"], json!([FINALIZER]));
    update["request"]["object"] = new;
    assert_eq!(verdict(Phase::Mutating, &update), Verdict::Allowed { patch: vec![], warnings: vec![] });
    assert_eq!(problems(Phase::Validating, &update), [""; 0]);
}

/// From before there was a webhook: nothing is made up about it.
#[test]
fn an_old_object_without_owner_and_creator_stays_without() {
    let update = review("UPDATE", &api_key(json!({"expiresIn": "2d"})), &api_key(json!({"expiresIn": "1d"})));
    let new = mutated(&update);
    assert_eq!(new["spec"], json!({"expiresIn": "2d"}));
    assert_eq!(new["metadata"]["annotations"], Value::Null);
    assert_eq!(new["metadata"]["finalizers"], json!([FINALIZER]));
    let mut update = update;
    update["request"]["object"] = new;
    assert_eq!(problems(Phase::Validating, &update), [""; 0]);
}

#[test]
fn an_object_on_its_way_out_is_left_alone() {
    let mut old = stored(json!({"owner": "a b", "expiresIn": "x"}));
    old["metadata"]["deletionTimestamp"] = json!("2026-11-23T11:59:59Z");
    let mut without_finalizer = old.clone();
    without_finalizer["metadata"]["finalizers"] = json!([]);
    // What a replacement sends that leaves the time out.
    let mut replaced = without_finalizer.clone();
    replaced["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    for new in [&old, &without_finalizer, &replaced] {
        for phase in [Phase::Mutating, Phase::Validating] {
            let nothing = Verdict::Allowed { patch: vec![], warnings: vec![] };
            assert_eq!(verdict(phase, &review("UPDATE", new, &old)), nothing);
        }
    }
}

#[test]
fn an_owner_is_who_asks_only_where_that_name_will_do() {
    let service_account = "system:serviceaccount:team-a:deployer";
    for (user, owner) in [
        (service_account, Some(service_account)),
        (USER, Some(USER)),
        ("CN=Ada Lovelace", None),
        ("", None),
        (&*"a".repeat(129), None),
    ] {
        let mut create = review("CREATE", &api_key(json!({})), &Value::Null);
        create["request"]["userInfo"]["username"] = json!(user);
        match owner {
            Some(owner) => assert_eq!(mutated(&create)["spec"]["owner"], owner),
            None => {
                let said = problems(Phase::Mutating, &create);
                assert_eq!(said.len(), 1, "{said:?}");
                let (start, end) = (
                    "spec.owner: is missing: name the person; your user name \"",
                    "letters, digits and ._@:/+=-, without spaces",
                );
                assert!(said[0].starts_with(start) && said[0].ends_with(end), "{said:?}");
            }
        }
        create["request"]["object"]["spec"]["owner"] = json!("team-a");
        let object = mutated(&create);
        assert_eq!(object["metadata"]["annotations"][CREATED_BY_ANNOTATION], user, "whatever it is");
    }
}

#[test]
fn what_stands_fast_is_refused_when_it_changes() {
    let name = "spec.secret.name: is immutable, and is \"ci\": create another ApiKey for another Secret";
    let other_name = "spec.secret.name: is immutable, and is \"other\": create another ApiKey for another Secret";
    let key = "spec.secret.key: is immutable, and is \"api-key\": create another ApiKey for another data key";
    let hash = "spec.keyHash: is immutable: create another ApiKey for another key";
    let source = "spec.keyFrom: is immutable: create another ApiKey for another source";
    let from = |name: &str| json!({"keyFrom": {"secretRef": {"name": name, "key": "token"}}});
    let opaque = "spec.secret.template.type: is immutable, and is \"Opaque\": create another ApiKey for another type";
    let basic = json!({"secret": {"template": {"type": "kubernetes.io/basic-auth", "data": {"password": "$(KEY)"}}}});
    for (old, new, said) in [
        (json!({}), basic.clone(), &[opaque][..]),
        (json!({}), json!({"secret": {"template": {"type": "Opaque"}}}), &[]),
        (basic.clone(), json!({}), &[&opaque.replace("Opaque", "kubernetes.io/basic-auth")]),
        (json!({}), json!({"secret": {"name": "other"}}), &[name]),
        (json!({"secret": {"name": "other"}}), json!({}), &[other_name]),
        (json!({}), json!({"secret": {"name": "ci", "key": "api-key"}}), &[]),
        (json!({"secret": {"name": "ci"}}), json!({"secret": {"key": "a"}}), &[key]),
        (json!({}), json!({"secret": {"name": "b", "key": "a"}}), &[name, key]),
        (json!({}), json!({"keyHash": DIGEST}), &[hash]),
        (json!({"keyHash": DIGEST}), json!({"keyHash": DIGEST.replace('7', "1")}), &[hash]),
        (json!({"keyHash": DIGEST}), json!({}), &[hash]),
        (json!({"keyHash": DIGEST}), json!({"keyHash": DIGEST, "suspended": true}), &[]),
        (json!({}), from("vault"), &[source]),
        (from("vault"), from("other"), &[source]),
        (from("vault"), json!({}), &[source]),
        (from("vault"), from("vault"), &[]),
    ] {
        let with_owner = |mut spec: Value| {
            spec["owner"] = json!("ada");
            stored(spec)
        };
        let update = review("UPDATE", &with_owner(new), &with_owner(old));
        for phase in [Phase::Mutating, Phase::Validating] {
            assert_eq!(problems(phase, &update), said, "{update}");
        }
    }
}

#[test]
fn created_by_is_put_back_whatever_is_sent() {
    let subject = "team-a/ci: metadata.annotations[keywright.dev/created-by]";
    let with = |created_by: &Value| {
        let mut object = stored(json!({"owner": "ada"}));
        object["metadata"]["annotations"] = json!({CREATED_BY_ANNOTATION: created_by, "a": "b"});
        object
    };
    let put_back = format!("{subject} names the creator of the object: it was put back to \"a\"");
    let made_up = format!("{subject} was removed: the creator of this object is not known");
    for (old, new, warning) in [
        (json!("a"), json!("a"), None),
        (json!("a"), json!("b"), Some(&put_back)),
        (json!("a"), json!(""), Some(&put_back)),
        (json!("a"), Value::Null, None),
        (Value::Null, json!("b"), Some(&made_up)),
        (Value::Null, Value::Null, None),
    ] {
        let mut update = review("UPDATE", &with(&new), &with(&old));
        let Verdict::Allowed { patch, warnings } = verdict(Phase::Mutating, &update) else { panic!("{update}") };
        assert_eq!(warnings.first(), warning, "{update}");
        assert!(warnings.len() <= 1, "{warnings:?}");
        apply(&mut update["request"]["object"], &patch);
        let annotations = &update["request"]["object"]["metadata"]["annotations"];
        assert_eq!((&annotations[CREATED_BY_ANNOTATION], &annotations["a"]), (&old, &json!("b")));
        assert_eq!(problems(Phase::Validating, &update), [""; 0]);
        assert_eq!(verdict(Phase::Mutating, &update), Verdict::Allowed { patch: vec![], warnings: vec![] });
    }
    let update = review("UPDATE", &with(&json!("b")), &with(&json!("a")));
    let expected = "metadata.annotations[keywright.dev/created-by]: must stay as /mutate set it: check whether another webhook changes it";
    assert_eq!(problems(Phase::Validating, &update), [expected]);
    for created_by in [json!("somebody else"), Value::Null] {
        let create = review("CREATE", &with(&created_by), &Value::Null);
        let Verdict::Allowed { warnings, .. } = verdict(Phase::Mutating, &create) else { panic!("{create}") };
        let told = format!("{subject} names the creator of the object: it was set to \"{USER}\"");
        assert_eq!(warnings.first(), (!created_by.is_null()).then_some(&told));
        let said = problems(Phase::Validating, &create);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("must name the requesting user"), "{said:?}");
    }
}

#[test]
fn an_owner_that_is_no_person_is_told_of() {
    let account = "system:serviceaccount:team-a:deployer";
    for (user, spec, expected) in [
        (
            account,
            json!({}),
            Some(format!(
                "team-a/ci: spec.owner was filled in with the pipeline's ServiceAccount {account}; name a person"
            )),
        ),
        (
            "system:admin",
            json!({}),
            Some("team-a/ci: spec.owner was filled in with the requesting user system:admin; name a person".to_owned()),
        ),
        (account, json!({"owner": account}), None),
        (USER, json!({}), None),
    ] {
        let mut create = review("CREATE", &api_key(spec), &Value::Null);
        create["request"]["userInfo"]["username"] = json!(user);
        let Verdict::Allowed { warnings, .. } = verdict(Phase::Mutating, &create) else { panic!("{create}") };
        assert_eq!(warnings, Vec::from_iter(expected), "{user}");
    }
}

#[test]
fn a_spec_that_is_missing_is_all_that_is_missing() {
    for object in [json!({"metadata": {"name": "ci"}}), api_key(Value::Null)] {
        let mut create = review("CREATE", &object, &Value::Null);
        create["request"]["userInfo"]["username"] = json!("Ada L");
        assert_eq!(problems(Phase::Mutating, &create), ["spec: is missing"]);
        let update = review("UPDATE", &object, &stored(json!({"owner": "ada"})));
        assert_eq!(problems(Phase::Mutating, &update), ["spec: is missing"]);
    }
}

#[test]
fn warnings_name_the_object_and_stay_short() {
    let spec = json!({"owner": "ada"});
    let create = |name: &str, namespace: &str| {
        let mut create = review("CREATE", &stored(spec.clone()), &Value::Null);
        create["request"]["namespace"] = json!(namespace);
        create["request"]["object"]["metadata"]["name"] = json!(name);
        whole_warnings(Phase::Validating, &create).remove(0)
    };
    assert!(create("ci", "team-a").starts_with("team-a/ci: spec.expiresIn: this key never expires"));
    let long = create(&"a".repeat(253), &"n".repeat(63));
    assert!(
        long.len() <= 256 && long.contains("...: spec.expiresIn: this key never expires; consider expiresIn: 90d"),
        "{long}"
    );
}

#[test]
fn an_owner_is_demanded_of_what_is_stored() {
    let mut create = review("CREATE", &stored(json!({})), &Value::Null);
    assert_eq!(problems(Phase::Validating, &create), ["spec.owner: is missing: name the responsible person"]);
    create["request"]["object"]["spec"]["owner"] = json!("ada");
    assert_eq!(problems(Phase::Validating, &create), [""; 0]);
    let update = review("UPDATE", &stored(json!({})), &stored(json!({"owner": "ada"})));
    assert_eq!(problems(Phase::Validating, &update), ["spec.owner: cannot be removed: name the new owner"]);
    let update = review("UPDATE", &stored(json!({"owner": "bob"})), &stored(json!({"owner": "ada"})));
    assert_eq!(problems(Phase::Validating, &update), [""; 0]);
}

#[test]
fn all_problems_of_an_object_are_causes_with_their_paths() {
    let spec = json!({
        "owner": "Ada L",
        "displayName": "",
        "expiresIn": "1w",
        "allowedIPs": ["10.0.0.1/8", "10.0.0.0/8", "10.0.0.0/8", "192.0.2.1,192.0.2.2", "010.0.0.1"],
        "scopes": ["not ok"],
        "rotation": {"every": "1h", "overlap": "2h"},
        "secret": {"name": "A"},
    });
    let response = ask(Phase::Mutating, &review("CREATE", &api_key(spec), &Value::Null));
    assert_eq!(response["allowed"], false);
    assert_eq!(response.get("patch"), None, "what is refused is not completed");
    let status = &response["status"];
    assert_eq!(
        (&status["code"], &status["reason"], &status["status"]),
        (&json!(422), &json!("Invalid"), &json!("Failure"))
    );
    assert_eq!(
        status["message"],
        "ApiKey.keywright.dev \"ci\" is invalid: \
         spec.displayName: must be 1 to 128 characters, none of them a control character, not \"\"; \
         spec.owner: must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces, not \"Ada L\"; \
         spec.scopes[0]: must be 1 to 64 letters, digits and ._:/-, not \"not ok\"; \
         spec.allowedIPs[0]: \"10.0.0.1/8\" has host bits set; did you mean \"10.0.0.0/8\"?; \
         spec.allowedIPs[2]: entries 1 and 2 are both 10.0.0.0/8; remove one of them; \
         spec.allowedIPs[3]: \"192.0.2.1,192.0.2.2\" holds a comma; write each address or CIDR as its own list entry; \
         spec.allowedIPs[4]: \"010.0.0.1\" has a number with a leading zero, which some programs read as octal; did you mean \"10.0.0.1\"?; \
         spec.expiresIn: must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d, not \"1w\"; did you mean \"7d\"?; \
         and 2 more"
    );
    let details = &status["details"];
    assert_eq!(
        (&details["group"], &details["kind"], &details["name"]),
        (&json!(GROUP), &json!("ApiKey"), &json!("ci"))
    );
    let causes = details["causes"].as_array().unwrap();
    assert_eq!(
        causes[3],
        json!({
            "field": "spec.allowedIPs[0]",
            "message": "\"10.0.0.1/8\" has host bits set; did you mean \"10.0.0.0/8\"?",
            "reason": "FieldValueInvalid",
        })
    );
    let paths: Vec<_> = causes.iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    assert_eq!(
        paths,
        [
            "spec.displayName",
            "spec.owner",
            "spec.scopes[0]",
            "spec.allowedIPs[0]",
            "spec.allowedIPs[2]",
            "spec.allowedIPs[3]",
            "spec.allowedIPs[4]",
            "spec.expiresIn",
            "spec.rotation.overlap",
            "spec.secret.name",
        ]
    );
}

/// The verdict of the whole function, and that the one cause names entry, rule and the nearest good spelling.
#[test]
fn every_row_of_the_address_cases_gets_its_verdict_rule_and_hint() {
    let mut rows = 0;
    for line in include_str!("../../../../tests/cases/allowed-ips.tsv").lines().filter(|line| !line.starts_with("# ")) {
        let columns: Vec<_> = line.split('\t').collect();
        let entry: String = serde_json::from_str(&format!("\"{}\"", columns[0])).unwrap();
        let spec = json!({"owner": "ada", "allowedIPs": ["198.51.100.0/24", entry]});
        let response = ask(Phase::Validating, &review("CREATE", &stored(spec.clone()), &Value::Null));
        assert_eq!(response["allowed"], columns[1] == "accept", "{line}");
        let mutated = ask(Phase::Mutating, &review("CREATE", &stored(spec), &Value::Null));
        assert_eq!(mutated["allowed"], response["allowed"], "{line}");
        if columns[1] == "reject" {
            let causes = response["status"]["details"]["causes"].as_array().unwrap();
            assert_eq!(causes.len(), 1, "{line}");
            assert_eq!(causes[0]["field"], "spec.allowedIPs[1]", "{line}");
            let refusal = crate::address::Network::parse(&entry).unwrap_err();
            assert_eq!(refusal.rule().as_str(), columns[2], "{line}");
            let message = causes[0]["message"].as_str().unwrap();
            assert_eq!(message, refusal.to_string(), "{line}");
            if let Some(suggestion) = refusal.suggestion() {
                assert!(message.ends_with(&format!("did you mean \"{suggestion}\"?")), "{line}: {message}");
            }
        }
        rows += 1;
    }
    assert_eq!(rows, 144);
}

#[test]
fn an_update_is_not_refused_for_what_it_leaves_as_bad_as_it_was() {
    let bad = json!({"owner": "ada", "allowedIPs": ["10.0.0.1/8", "nowhere"], "expiresIn": "x"});
    let with = |field: &str, value: Value| {
        let mut spec = bad.clone();
        spec[field] = value;
        spec
    };
    let (first, second, third) = ("spec.allowedIPs[0]", "spec.allowedIPs[1]", "spec.expiresIn");
    for (new, refused, tolerated) in [
        (bad.clone(), vec![], vec![first, second, third]),
        (with("suspended", json!(true)), vec![], vec![first, second, third]),
        (with("expiresIn", json!("1d")), vec![], vec![first, second]),
        (with("expiresIn", json!("y")), vec![third], vec![]),
        // A list that is touched has to be good as a whole, as for the API server.
        (with("allowedIPs", json!(["10.0.0.0/8", "nowhere"])), vec![second], vec![]),
        (with("allowedIPs", json!(["10.0.0.0/8"])), vec![], vec![third]),
    ] {
        for phase in [Phase::Mutating, Phase::Validating] {
            let update = review("UPDATE", &stored(new.clone()), &stored(bad.clone()));
            match verdict(phase, &update) {
                Verdict::Invalid(problems) => {
                    let paths: Vec<_> = problems.iter().map(|problem| &*problem.path).collect();
                    assert_eq!(paths, refused, "{new}");
                }
                Verdict::Allowed { warnings, .. } => {
                    assert!(refused.is_empty(), "{new}");
                    let path = |warning: &str| warning.split(": ").nth(1).unwrap().to_owned();
                    let warned: Vec<_> = warnings.iter().map(|warning| path(warning)).collect();
                    let expected = if phase == Phase::Validating { tolerated.clone() } else { vec![] };
                    assert_eq!(warned, expected, "{new}");
                }
                Verdict::Misdirected(message) => panic!("{message}"),
            }
        }
    }
    // A problem between two fields is new when either is.
    let both = json!({"owner": "ada", "expiresIn": "1d", "expiresAt": "2027-01-01T00:00:00Z"});
    let mut other = both.clone();
    other["expiresIn"] = json!("2d");
    assert_eq!(problems(Phase::Validating, &review("UPDATE", &stored(both.clone()), &stored(both.clone()))), [""; 0]);
    assert_eq!(problems(Phase::Validating, &review("UPDATE", &stored(other), &stored(both.clone()))).len(), 1);
    assert_eq!(problems(Phase::Validating, &review("CREATE", &stored(both), &Value::Null)).len(), 1);
}

#[test]
fn what_deserves_a_second_look_is_warned_about() {
    let never = "spec.expiresIn: this key never expires; consider expiresIn: 90d, so that a leaked key stops working";
    let mount =
        "spec.rotation.overlap: a mounted Secret takes up to 2m to change; choose a longer overlap if Pods mount it";
    for (spec, expected) in [
        (json!({"expiresIn": "1d"}), &[][..]),
        (json!({}), &[never]),
        (json!({"expiresIn": "Never"}), &[never]),
        (
            json!({"expiresAt": "2026-11-23T12:00:00Z"}),
            &["spec.expiresAt: the key expired at 2026-11-23T12:00:00Z and is refused"],
        ),
        (json!({"expiresAt": "2026-11-23T12:00:01Z"}), &[]),
        (json!({"expiresIn": "22d"}), &["spec.expiresIn: the key expired at 2026-11-23T00:00:00Z and is refused"]),
        (
            json!({"expiresIn": "90d", "allowedIPs": ["10.0.0.0/8", "0.0.0.0/0"]}),
            &["spec.allowedIPs[1]: 0.0.0.0/0 allows every IPv4 address"],
        ),
        (
            json!({"expiresIn": "90d", "allowedIPs": ["::/0", "0.0.0.0/1", "128.0.0.0/1"]}),
            &[
                "spec.allowedIPs[0]: ::/0 allows every IPv6 address",
                "spec.allowedIPs: together the entries allow every IPv4 address",
            ],
        ),
        (json!({"expiresIn": "90d", "allowedIPs": ["0.0.0.0/1", "8000::/1"]}), &[]),
        (
            json!({"expiresAt": "9999-12-31T23:59:59Z"}),
            &[
                "spec.expiresAt: 9999-12-30T22:00:00Z is as late as never; write expiresIn: Never, or a short life such as 90d",
            ],
        ),
        (json!({"expiresAt": "2100-01-01T00:00:00Z"}), &[]),
        (json!({"expiresIn": "90d", "rotation": {"every": "30d"}}), &[]),
        (json!({"expiresIn": "90d", "rotation": {"overlap": "1h"}}), &[]),
        (json!({"expiresAt": "2026-12-23T12:00:00Z", "rotation": {"every": "30d"}}), &[]),
        (
            json!({"expiresAt": "2026-12-23T11:59:59Z", "rotation": {"every": "30d"}}),
            &["spec.rotation.every: the key expires at 2026-12-23T11:59:59Z, before a rotation is due; shorten every"],
        ),
        (json!({"expiresIn": "90d", "rotation": {"overlap": "2m"}}), &[]),
        (json!({"expiresIn": "90d", "rotation": {"overlap": "119s"}}), &[mount]),
        (json!({"expiresIn": "90d", "rotation": {"every": "1m"}}), &[mount]),
        (
            json!({"expiresAt": "2026-11-23T11:00:00Z", "rotation": {"every": "30d"}}),
            &["spec.expiresAt: the key expired at 2026-11-23T11:00:00Z and is refused"],
        ),
    ] {
        let mut spec = spec;
        spec["owner"] = json!("ada");
        // Updates tell when the object was made; the new spec is another one than the old.
        let old = stored(json!({"owner": "bob"}));
        let expected = if spec["expiresIn"] == "1d" {
            vec!["spec.expiresIn: the key expired at 2026-11-02T00:00:00Z and is refused"]
        } else {
            expected.to_vec()
        };
        let said = warnings(&review("UPDATE", &stored(spec.clone()), &old));
        assert_eq!(said, expected, "{spec}");
        assert!(said.iter().all(|warning| warning.len() <= 120), "{said:?}");
        let unchanged = review("UPDATE", &stored(spec.clone()), &stored(spec.clone()));
        assert_eq!(warnings(&unchanged), [""; 0], "not at every touch");
        let Verdict::Allowed { warnings, .. } = verdict(Phase::Mutating, &review("UPDATE", &stored(spec), &old)) else {
            panic!("refused")
        };
        assert_eq!(warnings, [""; 0], "once and not twice");
    }
    // At creation, /mutate is asked before there is a creation time.
    let create = review("CREATE", &stored(json!({"owner": "ada", "expiresIn": "30d"})), &Value::Null);
    assert_eq!(warnings(&create), [""; 0]);
}

#[test]
fn tolerated_problems_are_warned_about_briefly() {
    let entries: Vec<_> = (0..300).map(|number| format!("{number}.x")).collect();
    let spec = json!({"owner": "ada", "allowedIPs": entries, "displayName": "\u{1}".repeat(300)});
    let said = warnings(&review("UPDATE", &stored(spec.clone()), &stored(spec)));
    assert_eq!(said.len(), 9);
    assert!(said.iter().all(|warning| warning.chars().count() <= 256), "{said:?}");
    assert_eq!(said[8], "spec: 250 more problems");
}

#[test]
fn questions_for_somebody_else_are_sent_back() {
    let create = review("CREATE", &stored(json!({"owner": "ada"})), &Value::Null);
    let refused = |field: &str, value: Value| {
        let mut review = create.clone();
        *review["request"].pointer_mut(field).unwrap_or_else(|| panic!("{field}")) = value;
        let response = ask(Phase::Validating, &review);
        assert_eq!(response["allowed"], false, "{review}");
        assert_eq!(response["status"]["code"], 400, "{review}");
        response["status"]["message"].as_str().unwrap().to_owned()
    };
    for (field, value, named) in [
        ("/resource/resource", "apikeyrecords", "not apikeyrecords.v1alpha1.keywright.dev:"),
        ("/resource/group", "", "not apikeys.v1alpha1:"),
        ("/resource/version", "v1beta1", "not apikeys.v1beta1.keywright.dev:"),
    ] {
        let said = refused(field, json!(value));
        assert!(said.starts_with("this webhook handles apikeys.v1alpha1.keywright.dev, not "), "{said}");
        assert!(said.contains(named) && said.ends_with("correct the rules of the webhook configuration"), "{said}");
    }
    assert!(refused("/operation", json!("CONNECT")).contains("not Connect of apikeys.v1alpha1"));
    assert_eq!(refused("/object", Value::Null), "request.object is missing in a review of Create");
    assert_eq!(refused("/operation", json!("UPDATE")), "request.oldObject is missing in a review of UPDATE");
    let mut scale = create.clone();
    scale["request"]["subResource"] = json!("scale");
    assert_eq!(ask(Phase::Mutating, &scale)["status"]["code"], 400);
}

#[test]
fn statuses_and_deletions_pass() {
    let bad = stored(json!({"owner": "a b", "keyHash": 7}));
    let mut status = review("UPDATE", &bad, &stored(json!({"owner": "ada"})));
    status["request"]["subResource"] = json!("status");
    let delete = review("DELETE", &Value::Null, &bad);
    for review in [status, delete] {
        for phase in [Phase::Mutating, Phase::Validating] {
            assert_eq!(ask(phase, &review), json!({"uid": review["request"]["uid"], "allowed": true}));
        }
    }
}

#[test]
fn what_is_no_review_is_told_from_what_is() {
    let said = |body: &str| Request::read(body.as_bytes()).unwrap_err().to_string();
    let good = review("CREATE", &stored(json!({})), &Value::Null);
    for (body, expected) in [
        ("", "not an AdmissionReview: EOF while parsing a value at line 1 column 0".to_owned()),
        ("{", "not an AdmissionReview: EOF while parsing an object at line 1 column 1".to_owned()),
        (
            "7",
            "not an AdmissionReview: invalid type: integer `7`, expected an AdmissionReview at line 1 column 1"
                .to_owned(),
        ),
        ("{}", "expected AdmissionReview of admission.k8s.io/v1, not (none) of (none)".to_owned()),
    ] {
        assert_eq!(said(body), expected);
    }
    let changed = |field: &str, value: Value| {
        let mut review = good.clone();
        review[field] = value;
        said(&review.to_string())
    };
    let v1beta1 = changed("apiVersion", json!("admission.k8s.io/v1beta1"));
    assert_eq!(
        v1beta1,
        "expected AdmissionReview of admission.k8s.io/v1, not AdmissionReview of admission.k8s.io/v1beta1"
    );
    assert!(changed("kind", json!("ConversionReview")).ends_with("not ConversionReview of admission.k8s.io/v1"));
    assert_eq!(changed("request", Value::Null), "the AdmissionReview holds no request");
    let of_request = |field: &str, value: Value| {
        let mut review = good.clone();
        review["request"][field] = value;
        said(&review.to_string())
    };
    assert_eq!(of_request("uid", json!("")), "request.uid is empty");
    for (field, value) in [
        ("uid", json!(7)),
        ("operation", json!("PATCH")),
        ("resource", Value::Null),
        ("userInfo", json!("ada")),
        ("object", json!([])),
        ("object", json!({"metadata": {"annotations": {CREATED_BY_ANNOTATION: 7}}})),
        ("object", json!({"metadata": {"finalizers": "x"}})),
    ] {
        let said = of_request(field, value);
        assert!(said.starts_with("not an AdmissionReview: ") && said.contains(" at line 1 column "), "{said}");
    }
}

#[test]
fn a_huge_or_deep_spec_gets_an_answer_and_not_a_parse() {
    let mut create = review("CREATE", &stored(json!({})), &Value::Null);
    let entries: Vec<_> =
        (0..5000).map(|number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string()).collect();
    create["request"]["object"]["spec"] = json!({"owner": "ada", "allowedIPs": entries});
    assert_eq!(
        problems(Phase::Mutating, &create),
        ["spec.allowedIPs: the list has 5000 entries; write at most 256, with wider networks"]
    );
    create["request"]["object"]["spec"] = json!({"description": "x".repeat(300_000)});
    assert_eq!(problems(Phase::Mutating, &create), ["spec: is 300018 bytes long; at most 262144 are read"]);
    let body = |spec: &str| {
        let mut review = create.clone();
        review["request"]["object"]["spec"] = json!("SPEC");
        review.to_string().replace("\"SPEC\"", spec)
    };
    let deep = body(&format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)));
    let request = Request::read(deep.as_bytes()).unwrap();
    let Verdict::Invalid(problems) = judge(Phase::Mutating, &request, now()) else { panic!("allowed") };
    let said = problems[0].to_string();
    assert!(said.starts_with("spec: cannot be read: recursion limit exceeded at line 1 column "), "{said}");
    // Outside of the spec nobody looks.
    let aside = create.to_string().replacen(
        "\"dryRun\"",
        &format!("\"x\":{}{},\"dryRun\"", "[".repeat(100_000), "]".repeat(100_000)),
        1,
    );
    Request::read(aside.as_bytes()).unwrap();
}

#[test]
fn names_that_are_still_to_be_chosen_are_shown_as_such() {
    let mut create = review("CREATE", &api_key(json!({"owner": "a b"})), &Value::Null);
    create["request"]["name"] = json!("");
    create["request"]["object"]["metadata"] = json!({"generateName": "ci-"});
    assert_eq!(ask(Phase::Mutating, &create)["status"]["details"]["name"], "ci-*");
    create["request"]["object"]["metadata"] = json!({});
    assert_eq!(ask(Phase::Mutating, &create)["status"]["details"]["name"], "");
}

/// Specs of which many are good.
fn specs() -> impl Strategy<Value = Value> {
    let field = |values: Vec<Value>| proptest::option::weighted(0.4, proptest::sample::select(values));
    (
        field(vec![json!("ada"), json!("a b"), json!(7), Value::Null]),
        field(vec![json!("1d"), json!("Never"), json!("x")]),
        field(vec![json!("2027-01-01T00:00:00Z"), json!("x")]),
        field(vec![json!(["10.0.0.0/8"]), json!(["0.0.0.0/0", "10.0.0.1/8"]), json!([]), json!("x")]),
        field(vec![json!({"name": "other"}), json!({"key": "a"}), json!({"name": "A"}), json!("x")]),
        field(vec![json!(DIGEST), json!("x")]),
    )
        .prop_map(|(owner, expires_in, expires_at, allowed_ips, secret, key_hash)| {
            let fields = [
                ("owner", owner),
                ("expiresIn", expires_in),
                ("expiresAt", expires_at),
                ("allowedIPs", allowed_ips),
                ("secret", secret),
                ("keyHash", key_hash),
            ];
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        })
}

fn metadata() -> impl Strategy<Value = Value> {
    let annotations = proptest::sample::select(vec![
        Value::Null,
        json!({}),
        json!({"a": "b"}),
        json!({CREATED_BY_ANNOTATION: USER}),
        json!({CREATED_BY_ANNOTATION: "eve", "a": "b"}),
    ]);
    let finalizers = proptest::sample::select(vec![Value::Null, json!([]), json!(["a/b"]), json!([FINALIZER, "a/b"])]);
    (annotations, finalizers).prop_map(
        |(annotations, finalizers)| json!({"name": "ci", "annotations": annotations, "finalizers": finalizers}),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What `/mutate` lets through, `/validate` lets through, and a second `/mutate` has nothing to add.
    #[test]
    fn what_is_completed_is_complete(
        new in (metadata(), specs()),
        old in proptest::option::of((metadata(), specs())),
    ) {
        let object = |(metadata, spec): (Value, Value)| json!({"metadata": metadata, "spec": spec});
        let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
        let mut review = review(operation, &object(new), &old.map(object).unwrap_or_default());
        if let Verdict::Allowed { patch, .. } = verdict(Phase::Mutating, &review) {
            apply(&mut review["request"]["object"], &patch);
            prop_assert_eq!(verdict(Phase::Mutating, &review), Verdict::Allowed { patch: vec![], warnings: vec![] });
            prop_assert!(matches!(verdict(Phase::Validating, &review), Verdict::Allowed { .. }), "{review}");
        }
    }

    /// Any bytes get an answer, and any that look like a review one that carries the uid.
    #[test]
    fn any_octets_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = Request::read(&bytes) {
            request.answer(&judge(Phase::Mutating, &request, now())).unwrap();
        }
    }

    #[test]
    fn any_review_with_octets_changed_gets_an_answer(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        spec in specs(),
    ) {
        let mut body = review("UPDATE", &stored(spec), &stored(json!({"owner": "ada"}))).to_string().into_bytes();
        for (position, byte) in changes {
            let position = position.index(body.len());
            body[position] = byte;
        }
        if let Ok(request) = Request::read(&body) {
            for phase in [Phase::Mutating, Phase::Validating] {
                let answer = request.answer(&judge(phase, &request, now())).unwrap();
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                prop_assert_eq!(&answer["response"]["uid"], &request.uid);
            }
        }
    }
}
