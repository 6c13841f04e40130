//! The CustomResourceDefinitions on the real API server: what they refuse without any webhook, and in which words.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use keywright_core::api::{ApiKey, ApiKeyRecord, custom_resource_definitions};
use keywright_core::key::Digest;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::scene::api_key;
use keywright_testing::{Installation, wait};

#[test]
fn the_generated_files_are_those_of_the_types() {
    for definition in custom_resource_definitions() {
        let file = format!("{}/crds/{}.yaml", env!("CARGO_MANIFEST_DIR"), definition.spec.names.plural);
        let generated = serde_yaml::to_string(&definition).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), generated, "{file} is out of date: run make crds");
    }
}

/// A dry run, so that thousands of objects leave nothing behind.
async fn create(api: &Api<ApiKey>, spec: Value) -> Result<(), String> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    // Through JSON and not through the type, which would refuse what the API server is to refuse.
    let mut object = serde_json::to_value(api_key("row", json!({}))).unwrap();
    object["spec"] = spec;
    let api: Api<DynamicObject> = Api::namespaced_with(
        api.clone().into_client(),
        api.namespace().unwrap(),
        &kube::api::ApiResource::erase::<ApiKey>(&()),
    );
    api.create(&dry_run, &serde_json::from_value(object).unwrap()).await.map(drop).map_err(message)
}

fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_row_of_the_address_cases_gets_its_verdict_from_the_definition_alone() {
    let installation = Installation::new("crd-addresses").await;
    let api = installation.tenant::<ApiKey>();
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in include_str!("../cases/allowed-ips.tsv").lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<_> = line.split('\t').collect();
        let entry: String = serde_json::from_str(&format!("\"{}\"", columns[0])).unwrap();
        let answer = create(&api, json!({"allowedIPs": [entry]})).await;
        if answer.is_ok() != (columns[1] == "accept") {
            wrong.push(format!("{line}: {answer:?}"));
        }
        rows += 1;
    }
    assert_eq!(rows, 144);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn every_rule_refuses_with_a_message_that_helps() {
    let installation = Installation::new("crd-rules").await;
    let api = installation.tenant::<ApiKey>();
    let digest = format!("sha256:{}", "7".repeat(64));
    let address = "must be an IPv4 or IPv6 address or a CIDR without host bits, such as 192.0.2.7, 10.0.0.0/8 or \
        2001:db8::/32: no leading zeros, spaces, zones, ports, ranges or names, no IPv4-mapped IPv6, and not the \
        unspecified, the broadcast or a multicast address";
    let lifetime = "expiresIn must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d";
    let every = "every must be a duration such as 30d or 12h, from 1m to 3650d";
    let data_key = "an entry must be named as a Secret's data key: 1 to 253 letters, digits and -._, and not . or \
        beginning with ..";
    let named = "labels and annotations must be named as in Kubernetes: an optional DNS name and /, then 1 to 63 letters, \
        digits and -._, the first and last of them a letter or digit";
    let reserved = "names under keywright.dev/ and kubernetes.io/, app.kubernetes.io/managed-by and \
        kubectl.kubernetes.io/last-applied-configuration are reserved: choose another name";
    for (good, bad, expected) in [
        (
            json!({"displayName": "Ä".repeat(128)}),
            json!({"displayName": "a\tb"}),
            "spec.displayName: Invalid value: \"a\\tb\": displayName must not hold control characters",
        ),
        (
            json!({"displayName": "x"}),
            json!({"displayName": ""}),
            "spec.displayName: Invalid value: \"\": spec.displayName in body should be at least 1 chars long",
        ),
        (
            json!({"displayName": "x"}),
            json!({"displayName": "x".repeat(129)}),
            "spec.displayName: Too long: may not be more than 128 bytes",
        ),
        (
            json!({"description": "a\nb"}),
            json!({"description": "a\rb"}),
            "spec.description: Invalid value: \"a\\rb\": description must not hold control characters other than newline",
        ),
        (
            json!({"owner": "ada@example.org"}),
            json!({"owner": "a b"}),
            "spec.owner: Invalid value: \"a b\": owner must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces",
        ),
        (
            json!({"expiresIn": "Never"}),
            json!({"expiresIn": "never"}),
            &*format!("spec.expiresIn: Invalid value: \"never\": {lifetime}"),
        ),
        (
            json!({"expiresIn": "1m"}),
            json!({"expiresIn": "59s"}),
            &*format!("spec.expiresIn: Invalid value: \"59s\": {lifetime}"),
        ),
        (
            json!({"expiresIn": "3650d"}),
            json!({"expiresIn": "3650d1s"}),
            &*format!("spec.expiresIn: Invalid value: \"3650d1s\": {lifetime}"),
        ),
        (
            json!({"expiresAt": "2027-01-01T00:00:00Z"}),
            json!({"expiresAt": "soon"}),
            "spec.expiresAt: Invalid value: \"soon\": spec.expiresAt in body must be of type date-time: \"soon\"",
        ),
        (
            json!({"expiresIn": "1d"}),
            json!({"expiresIn": "1d", "expiresAt": "2027-01-01T00:00:00Z"}),
            "spec: Invalid value: expiresIn and expiresAt exclude each other: keep one",
        ),
        (
            json!({}),
            json!({"allowedIPs": []}),
            "spec.allowedIPs: Invalid value: an empty list allows nobody: leave the field out to allow any address",
        ),
        (
            json!({"allowedIPs": ["10.0.0.0/8", "::1"]}),
            json!({"allowedIPs": ["::1", "10.0.0.1/8"]}),
            &*format!("spec.allowedIPs[1]: Invalid value: \"10.0.0.1/8\": {address}"),
        ),
        (
            json!({"allowedIPs": ["10.0.0.1"]}),
            json!({"allowedIPs": ["10.0.0.1,10.0.0.2"]}),
            "spec.allowedIPs[0]: Invalid value: \"10.0.0.1,10.0.0.2\": one address or CIDR for each item: write a list instead of commas",
        ),
        (
            json!({"allowedIPs": ["10.0.0.1"]}),
            json!({"allowedIPs": ["10.0.0.1", "10.0.0.1"]}),
            "spec.allowedIPs[1]: Duplicate value: \"10.0.0.1\"",
        ),
        (
            json!({"allowedIPs": addresses(256)}),
            json!({"allowedIPs": addresses(257)}),
            "spec.allowedIPs: Too many: 257: must have at most 256 items",
        ),
        (
            json!({"scopes": ["a:b/c.d_e-f"]}),
            json!({"scopes": ["ok", "not ok"]}),
            "spec.scopes[1]: Invalid value: \"not ok\": a scope is 1 to 64 letters, digits and ._:/-",
        ),
        (json!({"scopes": []}), json!({"scopes": ["a", "a"]}), "spec.scopes[1]: Duplicate value: \"a\""),
        (
            json!({"scopes": scopes(32)}),
            json!({"scopes": scopes(33)}),
            "spec.scopes: Too many: 33: must have at most 32 items",
        ),
        (
            json!({"suspended": true}),
            json!({"suspended": "yes"}),
            "spec.suspended: Invalid value: \"string\": spec.suspended in body must be of type boolean: \"string\"",
        ),
        (
            json!({"rotation": {"every": "1m"}}),
            json!({"rotation": {"every": "30s"}}),
            &*format!("spec.rotation.every: Invalid value: \"30s\": {every}"),
        ),
        (
            json!({"rotation": {"every": "1h", "overlap": "1h"}}),
            json!({"rotation": {"every": "1h", "overlap": "61m"}}),
            "spec.rotation: Invalid value: overlap must not be longer than every",
        ),
        (
            json!({"rotation": {"overlap": "0s"}}),
            json!({"rotation": {"overlap": "soon"}}),
            "spec.rotation.overlap: Invalid value: \"soon\": overlap must be a duration such as 24h or 0s, at most 3650d",
        ),
        (
            json!({"secret": {"name": "a.b-c"}}),
            json!({"secret": {"name": "A"}}),
            "spec.secret.name: Invalid value: \"A\": secret.name must be a Secret's name: lower-case letters, digits, - and .",
        ),
        (
            json!({"secret": {"key": "API_KEY"}}),
            json!({"secret": {"key": "a/b"}}),
            "spec.secret.key: Invalid value: \"a/b\": secret.key must be letters, digits and -._",
        ),
        (
            json!({"secret": {"template": {"type": "Opaque"}}}),
            json!({"secret": {"template": {"type": "opaque"}}}),
            "spec.secret.template.type: Unsupported value: \"opaque\": supported values: \"Opaque\", \"kubernetes.io/basic-auth\"",
        ),
        (
            json!({"secret": {"key": "password", "template": {"type": "kubernetes.io/basic-auth"}}}),
            json!({"secret": {"template": {"type": "kubernetes.io/basic-auth", "data": {"login": "ci"}}}}),
            "spec.secret: Invalid value: the type kubernetes.io/basic-auth needs username or password: as secret.key, or as an entry of template.data",
        ),
        (
            json!({"secret": {"template": {"type": "kubernetes.io/basic-auth", "data": {"username": "ci"}}}}),
            json!({"secret": {"template": {"data": {"api-key": "$(KEY)"}}}}),
            "spec.secret: Invalid value: template.data must not name the entry that holds the key: choose another name, or another secret.key",
        ),
        (
            template_data(texts(16)),
            template_data(texts(17)),
            "spec.secret.template.data: Too many: 17: must have at most 16 items",
        ),
        (
            template_data(json!({"a": "ä".repeat(4096)})),
            template_data(json!({"a": "x".repeat(4097)})),
            "spec.secret.template.data.a: Too long: may not be more than 4096 bytes",
        ),
        (
            template_data(json!({"a".repeat(253): "", ".env": "", "data": ""})),
            template_data(json!({"a".repeat(254): ""})),
            &*format!("spec.secret.template.data: Invalid value: {data_key}"),
        ),
        (template_data(json!({"a..b": ""})), template_data(json!({"..a": ""})), data_key),
        (template_data(json!({"..a".replace("..", "a.."): ""})), template_data(json!({".": ""})), data_key),
        (template_data(json!({"A_b-C": ""})), template_data(json!({"a/b": ""})), data_key),
        (
            template_metadata("labels", "app.kubernetes.io/part-of", "shop"),
            template_metadata("labels", "app.kubernetes.io/managed-by", "shop"),
            &*format!("spec.secret.template.metadata.labels: Invalid value: {reserved}"),
        ),
        (
            template_metadata("labels", "keywright.dev.example.org/a", "b"),
            template_metadata("labels", "keywright.dev/source", "true"),
            reserved,
        ),
        (
            template_metadata("labels", "mykeywright.dev/a", "b"),
            template_metadata("labels", "docs.keywright.dev/a", "b"),
            reserved,
        ),
        (
            template_metadata("annotations", "batch.kubernetes.io/a", "b"),
            template_metadata("annotations", "kubernetes.io/a", "b"),
            &*format!("spec.secret.template.metadata.annotations: Invalid value: {reserved}"),
        ),
        (
            template_metadata("annotations", "a", "x y, $ and $$"),
            template_metadata("annotations", "kubectl.kubernetes.io/last-applied-configuration", "{}"),
            reserved,
        ),
        (
            template_metadata("labels", &"a".repeat(63), ""),
            template_metadata("labels", &"a".repeat(64), ""),
            &*format!("spec.secret.template.metadata.labels: Invalid value: {named}"),
        ),
        (
            template_metadata("annotations", "a.b/c", &"ä".repeat(4096)),
            template_metadata("annotations", "a/b/c", ""),
            &*format!("spec.secret.template.metadata.annotations: Invalid value: {named}"),
        ),
        (
            template_metadata("labels", "a", "A.b_c-9"),
            template_metadata("labels", "a", "-b"),
            "Invalid value: \"-b\": must be a label's value: at most 63 letters, digits and -._, the first and last of them a letter or digit",
        ),
        (
            template_metadata("annotations", "a", "$KEY (KEY)"),
            template_metadata("annotations", "a", "$(KEY)"),
            "Invalid value: \"$(KEY)\": must not hold $(: annotations have no variables, as more people may read them than Secrets",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": "sha256:00"}),
            "spec.keyHash: Invalid value: keyHash must be sha256: and 64 lower-case hexadecimal digits",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": format!("sha256:{}", "0".repeat(64))}),
            "spec.keyHash: Invalid value: keyHash is a placeholder and no digest: write what",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": format!("sha256:{}", "f".repeat(64))}),
            "spec.keyHash: Invalid value: keyHash is a placeholder and no digest: write what",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": Digest::of(b"").to_string()}),
            "spec.keyHash: Invalid value: keyHash is the digest of an empty key: set KEY, and write what",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": Digest::of(b"\n").to_string()}),
            "spec.keyHash: Invalid value: keyHash is the digest of an empty key: set KEY, and write what",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": digest, "secret": {}}),
            "spec: Invalid value: keyHash excludes secret: a key that was made elsewhere is not delivered",
        ),
        (
            json!({"keyHash": digest}),
            json!({"keyHash": digest, "rotation": {}}),
            "spec: Invalid value: keyHash excludes rotation: a key that was made elsewhere cannot be replaced here",
        ),
        (
            from_vault(json!({"rotation": {"overlap": "1h", "holdWhileInUse": true}})),
            from_vault(json!({"rotation": {"every": "30d"}})),
            "spec: Invalid value: keyFrom excludes rotation.every: write another key into the source Secret to rotate",
        ),
        (
            from_vault(json!({})),
            from_vault(json!({"secret": {}})),
            "spec: Invalid value: keyFrom excludes secret: the key is in a Secret already",
        ),
        (
            from_vault(json!({})),
            from_vault(json!({"keyHash": digest})),
            "spec: Invalid value: keyFrom excludes keyHash: keep one",
        ),
        (
            from_vault(json!({})),
            json!({"keyFrom": {"secretRef": {"name": "vault"}}}),
            "spec.keyFrom.secretRef.key: Required value",
        ),
        (
            from_vault(json!({})),
            json!({"keyFrom": {"secretRef": {"name": "Vault", "key": "token"}}}),
            "spec.keyFrom.secretRef.name: Invalid value: \"Vault\": secretRef.name must be a Secret's name: lower-case letters, digits, - and .",
        ),
        (
            from_vault(json!({})),
            json!({"keyFrom": {"secretRef": {"name": "vault", "key": "a b"}}}),
            "spec.keyFrom.secretRef.key: Invalid value: \"a b\": secretRef.key must be letters, digits and -._",
        ),
    ] {
        assert_eq!(create(&api, good.clone()).await, Ok(()), "{good}");
        let refused = create(&api, bad.clone()).await.unwrap_err();
        assert!(refused.contains(expected), "{bad}\n  says    {refused}\n  and not {expected}");
    }
}

/// This spec with a source for its key.
fn from_vault(mut spec: Value) -> Value {
    spec["keyFrom"] = json!({"secretRef": {"name": "vault", "key": "token"}});
    spec
}

fn template_data(data: Value) -> Value {
    json!({"secret": {"template": {"data": data}}})
}

fn template_metadata(kind: &str, name: &str, value: &str) -> Value {
    json!({"secret": {"template": {"metadata": {kind: {name: value}}}}})
}

fn texts(count: u32) -> Value {
    (0..count).map(|index| (format!("entry-{index}"), json!("$(KEY)"))).collect::<serde_json::Map<_, _>>().into()
}

#[tokio::test]
async fn every_text_of_a_template_gets_its_verdict_from_the_definition_alone() {
    let installation = Installation::new("crd-texts").await;
    let api = installation.tenant::<ApiKey>();
    let mut rows = 0;
    for row in include_str!("../cases/secret-texts.tsv").lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<_> = row.split('\t').collect();
        let text: String = serde_json::from_str(&format!("\"{}\"", columns[0])).unwrap();
        let answer = create(&api, template_data(json!({ "a": text }))).await;
        assert_eq!(answer.is_ok(), columns[1] == "accept", "{row}: {answer:?}");
        if let Err(said) = answer {
            assert!(
                said.contains("a $ must begin $(KEY), $(NAME), $(NAMESPACE), $(PREFIX) or $(EXPIRES_AT)"),
                "{said}"
            );
        }
        rows += 1;
    }
    assert!(rows > 25, "{rows}");
}

/// A template that is as large as it may be, and whose texts cost the most to check.
#[tokio::test]
async fn the_largest_template_is_taken() {
    let installation = Installation::new("crd-template").await;
    let api = installation.tenant::<ApiKey>();
    let data: serde_json::Map<_, _> =
        (0..16).map(|index| (format!("{index:0>253}"), json!("$(EXPIRES_AT)$$keyw".repeat(215)))).collect();
    let name = |index: u32| format!("{}/{index:0>63}", ["a".repeat(63), "b".repeat(63), "c".repeat(63)].join("."));
    let labels: serde_json::Map<_, _> = (0..32).map(|index| (name(index), json!("a".repeat(63)))).collect();
    let annotations: serde_json::Map<_, _> =
        (0..32).map(|index| (name(index), json!("$$keyw1_".repeat(500)))).collect();
    let metadata = json!({"labels": labels, "annotations": annotations});
    create(&api, json!({"secret": {"template": {"data": data, "metadata": metadata}}})).await.unwrap();
}

/// Where the webhook is not there.
#[tokio::test]
async fn the_commonest_slips_get_a_hint_and_a_key_is_not_repeated() {
    let installation = Installation::new("crd-hints").await;
    let api = installation.tenant::<ApiKey>();
    let (unit, known, bare) =
        ("did you mean days, as in 30d?", "did you mean 7d, 30d or 365d for each?", "did you mean, say, 30d?");
    let port = "has a port: write the address without it";
    for (spec, expected) in [
        (json!({"expiresIn": "30"}), unit),
        (json!({"expiresIn": "30D"}), bare),
        (json!({"expiresIn": " 30 days "}), bare),
        (json!({"expiresIn": "2w"}), known),
        (json!({"expiresIn": "3 Months"}), known),
        (json!({"expiresIn": "1 Year"}), known),
        (json!({"expiresIn": "NEVER"}), "did you mean Never?"),
        (json!({"rotation": {"every": "1w"}}), known),
        (json!({"rotation": {"every": "1h", "overlap": "30"}}), unit),
        (json!({"allowedIPs": ["192.0.2.1:443"]}), port),
        (json!({"allowedIPs": ["[2001:db8::1]:443"]}), port),
        (json!({"allowedIPs": ["10.0.0.0/8:443"]}), port),
    ] {
        let refused = create(&api, spec.clone()).await.unwrap_err();
        assert!(refused.contains(expected), "{spec}\n  says    {refused}\n  and not {expected}");
    }
    let key = "keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G";
    for text in [key.to_owned(), key.to_uppercase(), format!("{key}{key}")] {
        let refused = create(&api, json!({ "keyHash": text })).await.unwrap_err();
        assert!(!refused.to_lowercase().contains("keyw1"), "{refused}");
        for spec in [
            template_data(json!({"a": format!("API_KEY={text} $(")})),
            template_metadata("annotations", "a", &format!("{text} $(KEY)")),
            template_metadata("labels", "a", &format!("{} $(KEY)", &text[..40])),
        ] {
            let refused = create(&api, spec).await.unwrap_err();
            assert!(refused.contains("looks like it holds a key"), "{refused}");
            assert!(!refused.to_lowercase().contains("keyw1"), "{refused}");
        }
        if text.len() <= 71 {
            let expected = "spec.keyHash: Invalid value: this looks like a key, not its digest; treat it as leaked";
            assert!(refused.contains(expected), "{refused}");
        }
    }
}

/// What the webhook takes, the definition takes too, so that nothing is refused without a hint.
#[tokio::test]
async fn every_time_that_the_webhook_takes_is_taken_by_the_definition() {
    let installation = Installation::new("crd-times").await;
    let api = installation.tenant::<ApiKey>();
    let mut only_here = Vec::new();
    for row in include_str!("../cases/date-times.tsv").lines().filter(|row| !row.starts_with("# ")) {
        let columns: Vec<_> = row.split('\t').collect();
        let answer = create(&api, json!({"expiresAt": columns[0]})).await;
        match (columns[1], answer) {
            ("accept", answer) => assert_eq!(answer, Ok(()), "{row}"),
            (_, Ok(())) => only_here.push(columns[0]),
            (_, Err(said)) => assert!(said.contains("must be of type date-time"), "{row}: {said}"),
        }
    }
    // The API server's pattern is loose about the decimal point and the offset. Neither is RFC 3339.
    assert_eq!(only_here, [",5Z", "+24:00", "+01:60", "+99:99"].map(|end| format!("2027-01-31T00:00:00{end}")));
    let long = format!("2027-01-31T00:00:00.{}Z", "0".repeat(44));
    assert!(create(&api, json!({ "expiresAt": long })).await.unwrap_err().contains("Too long"));
}

fn addresses(count: u32) -> Vec<String> {
    (0..count).map(|index| std::net::Ipv4Addr::from(0x0a00_0000 + index).to_string()).collect()
}

fn scopes(count: u32) -> Vec<String> {
    (0..count).map(|index| format!("scope-{index}")).collect()
}

#[tokio::test]
async fn what_is_immutable_stays() {
    let installation = Installation::new("crd-immutable").await;
    let api = installation.tenant::<ApiKey>();
    let digest = format!("sha256:{}", "7".repeat(64));
    let (name, key, hash, source) = (
        "spec.secret.name is immutable: create another ApiKey for another Secret",
        "secret.key is immutable: create another ApiKey for another data key",
        "keyHash is immutable: create another ApiKey for another key",
        "keyFrom is immutable: create another ApiKey for another source",
    );
    let secret_type = "secret.template.type is immutable: create another ApiKey for another type";
    let basic = json!({"type": "kubernetes.io/basic-auth", "data": {"password": "$(KEY)"}});
    for (index, (before, allowed, refused, expected)) in [
        (
            json!({}),
            json!({"secret": {"name": "object-0", "key": "api-key"}}),
            json!({"secret": {"name": "other"}}),
            name,
        ),
        (json!({"secret": {"name": "other"}}), json!({"owner": "ada"}), json!({"secret": null}), name),
        (json!({"secret": {"key": "A"}}), json!({"owner": "ada"}), json!({"secret": {"key": null}}), key),
        (
            json!({}),
            json!({"secret": {"template": {"type": "Opaque", "data": {"a": "b"}}}}),
            json!({"secret": {"template": basic}}),
            secret_type,
        ),
        (
            json!({"secret": {"template": basic}}),
            json!({"secret": {"template": {"data": {"password": "x"}}}}),
            json!({"secret": null}),
            secret_type,
        ),
        (json!({}), json!({"owner": "ada"}), json!({"keyHash": digest}), hash),
        (json!({"keyHash": digest}), json!({"owner": "ada"}), json!({"keyHash": null}), hash),
        (json!({"keyHash": digest}), json!({"suspended": true}), json!({"keyHash": digest.replace('7', "1")}), hash),
        (json!({}), json!({"owner": "ada"}), from_vault(json!({})), source),
        (from_vault(json!({})), json!({"owner": "ada"}), json!({"keyFrom": null}), source),
        (from_vault(json!({})), json!({"suspended": true}), json!({"keyFrom": {"secretRef": {"key": "b"}}}), source),
    ]
    .into_iter()
    .enumerate()
    {
        let object = format!("object-{index}");
        api.create(&PostParams::default(), &api_key(&object, before)).await.unwrap();
        let patch = |spec: &Value| Patch::Merge(json!({ "spec": spec }));
        api.patch(&object, &PatchParams::default(), &patch(&allowed)).await.unwrap();
        let answer = api.patch(&object, &PatchParams::default(), &patch(&refused)).await.map_err(message);
        let said = answer.expect_err("an immutable field changed");
        assert!(said.contains(expected), "{refused}: {said}");
    }
}

#[tokio::test]
async fn a_record_keeps_its_identity_and_its_end() {
    let installation = Installation::new("crd-records").await;
    let own = OwnRecords::old(&installation).await;
    own.upgrade().await;
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    own.create("uid-1", json!({"rotateRequest": digest("1")})).await;
    for (change, expected) in [
        (json!({"digest": digest("1")}), "digest, apiKey and serial are immutable"),
        (json!({"apiKey": {"name": "other"}}), "digest, apiKey and serial are immutable"),
        (json!({"serial": 2}), "digest, apiKey and serial are immutable"),
        (json!({"keyPrefix": null}), "keyPrefix is immutable"),
        (json!({"rotateRequest": digest("2")}), "rotateRequest is immutable"),
        (json!({"allowedIPs": []}), "an empty list allows nobody"),
    ] {
        let said = own.patch("uid-1", change.clone()).await.expect_err("an immutable field changed");
        assert!(said.contains(expected), "{change}: {said}");
    }
    let change = json!({"owner": "ada", "suspended": true, "notAfter": "2027-01-01T00:00:00Z"});
    own.patch("uid-1", change).await.unwrap();
    own.patch("uid-1", json!({"revoked": {"at": "2027-01-01T00:00:00Z", "reason": "Deleted"}})).await.unwrap();
    for change in [json!({"revoked": null}), json!({"revoked": {"reason": "Replaced"}})] {
        let said = own.patch("uid-1", change).await.expect_err("a revoked key came back");
        assert!(said.contains("revoked cannot be unset or changed: a revoked key stays revoked"), "{said}");
    }
    let leaked = ListParams::default().fields(&format!("spec.digest={}", digest("0")));
    let found = own.records.list(&leaked).await.unwrap();
    assert_eq!(found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["uid-1"]);
    own.remove().await;
}

/// The records' definition under a group of the test's own, where no other test is in the way and no policy either.
struct OwnRecords {
    definitions: Api<CustomResourceDefinition>,
    definition: CustomResourceDefinition,
    records: Api<DynamicObject>,
}

impl OwnRecords {
    /// As an older version installed it: with the value of an annotation in `spec.rotateRequest`, whatever its length.
    async fn old(installation: &Installation) -> Self {
        let [_, mut definition] = custom_resource_definitions();
        let group = format!("{}.example.org", installation.tenant_namespace);
        definition.metadata.name = Some(format!("apikeyrecords.{group}"));
        definition.spec.group = group.clone();
        definition.spec.names.short_names = None;
        let resource = kube::api::ApiResource { group, ..kube::api::ApiResource::erase::<ApiKeyRecord>(&()) };
        let resource = kube::api::ApiResource { api_version: format!("{}/v1alpha1", resource.group), ..resource };
        let definitions = Api::all(installation.client.clone());
        let mut old = serde_json::to_value(&definition).unwrap();
        let spec = old.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
        spec["properties"]["rotateRequest"] = json!({"type": "string", "maxLength": 262_144});
        let rules = spec["x-kubernetes-validations"].as_array_mut().unwrap();
        rules.retain(|rule| rule["message"] != "rotateRequest is immutable");
        definitions.create(&PostParams::default(), &serde_json::from_value(old).unwrap()).await.unwrap();
        let records = Api::namespaced_with(installation.client.clone(), &installation.tenant_namespace, &resource);
        let own = Self { definitions, definition, records };
        own.until("it is served", async |records| records.list(&Default::default()).await.is_ok()).await;
        own
    }

    /// The definition of today takes the old one's place.
    async fn upgrade(&self) {
        let name = self.definition.name_any();
        let mut new = self.definition.clone();
        new.metadata.resource_version = self.definitions.get(&name).await.unwrap().resource_version();
        self.definitions.replace(&name, &PostParams::default(), &new).await.unwrap();
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let probe = self.record("probe", json!({"rotateRequest": "an old one"}));
        self.until("the new rules are in force", async |records| records.create(&dry_run, &probe).await.is_err()).await;
    }

    /// A record with these fields besides the ones that each has.
    fn record(&self, name: &str, more: Value) -> DynamicObject {
        let mut spec = json!({
            "digest": format!("sha256:{}", "0".repeat(64)), "keyPrefix": "keyw1_abcdefgh", "serial": 1,
            "apiKey": {"namespace": "team-a", "name": "ci", "uid": "uid"},
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let api_version = format!("{}/v1alpha1", self.definition.spec.group);
        let record = json!({
            "apiVersion": api_version, "kind": "ApiKeyRecord", "metadata": {"name": name}, "spec": spec,
        });
        serde_json::from_value(record).unwrap()
    }

    async fn create(&self, name: &str, more: Value) -> DynamicObject {
        self.records.create(&PostParams::default(), &self.record(name, more)).await.unwrap()
    }

    async fn patch(&self, name: &str, spec: Value) -> Result<Value, String> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let answer = self.records.patch(name, &PatchParams::default(), &patch).await;
        answer.map(|record| record.data["spec"].clone()).map_err(message)
    }

    async fn until(&self, what: &str, condition: impl AsyncFn(&Api<DynamicObject>) -> bool) {
        wait::until(what, async || condition(&self.records).await).await;
    }

    async fn remove(self) {
        self.definitions.delete(&self.definition.name_any(), &Default::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_record_of_an_older_version_can_be_changed_and_revoked() {
    let installation = Installation::new("crd-ratchet").await;
    let own = OwnRecords::old(&installation).await;
    let fat = "x".repeat(250_000);
    for name in ["live", "revoked-at-once", "revoked-first"] {
        own.create(name, json!({"rotateRequest": fat, "owner": "ada"})).await;
    }
    own.create("without", json!({})).await;
    own.upgrade().await;
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let immutable = "rotateRequest is immutable";

    let changed = own.patch("live", json!({"suspended": true, "allowedIPs": ["192.0.2.7/32"]})).await.unwrap();
    assert_eq!(changed["rotateRequest"], fat);
    for (value, expected) in [(json!("2"), "spec.rotateRequest in body should match"), (Value::Null, immutable)] {
        let said = own.patch("live", json!({"rotateRequest": value})).await.unwrap_err();
        assert!(said.contains(expected), "{said}");
    }
    own.patch("live", json!({"rotateRequest": digest("1")})).await.expect("its digest in its place");
    for value in [json!(digest("2")), Value::Null] {
        let said = own.patch("live", json!({"rotateRequest": value})).await.unwrap_err();
        assert!(said.contains(immutable), "{said}");
    }
    let said = own.patch("without", json!({"rotateRequest": digest("1")})).await.unwrap_err();
    assert!(said.contains(immutable), "{said}");

    let revoked = json!({"revoked": {"at": "2027-01-01T00:00:00Z", "reason": "Deleted"}});
    let mut at_once = revoked.clone();
    at_once["rotateRequest"] = Value::Null;
    at_once["owner"] = Value::Null;
    let tombstone = own.patch("revoked-at-once", at_once).await.unwrap();
    assert_eq!((tombstone.get("rotateRequest"), tombstone.get("owner")), (None, None));
    own.patch("revoked-first", revoked).await.expect("an old value that stays is no obstacle");
    own.patch("revoked-first", json!({"rotateRequest": null})).await.expect("nor is it one to go later");
    let said = own.patch("revoked-first", json!({"rotateRequest": digest("1")})).await.unwrap_err();
    assert!(said.contains(immutable), "{said}");
    own.remove().await;
}

#[tokio::test]
async fn a_tombstone_drops_the_rules_and_keeps_what_refuses() {
    let installation = Installation::new("crd-tombstone").await;
    let own = OwnRecords::old(&installation).await;
    own.upgrade().await;
    let rules = json!({
        "owner": "ada", "scopes": ["a"], "allowedIPs": ["192.0.2.7/32"], "notAfter": "2027-01-01T00:00:00Z",
        "suspended": true, "rotateRequest": format!("sha256:{}", "1".repeat(64)),
    });
    own.create("key", rules.clone()).await;
    let mut revocation: Value = rules.as_object().unwrap().keys().map(|field| (field.clone(), Value::Null)).collect();
    revocation["revoked"] = json!({"at": "2026-11-29T00:00:00Z", "reason": "Deleted"});
    let tombstone = own.patch("key", revocation).await.unwrap();
    let mut kept: Vec<_> = tombstone.as_object().unwrap().keys().cloned().collect();
    kept.sort();
    assert_eq!(kept, ["apiKey", "digest", "keyPrefix", "revoked", "serial"]);
    for (change, expected) in [
        (json!({"digest": format!("sha256:{}", "1".repeat(64))}), "digest, apiKey and serial are immutable"),
        (json!({"apiKey": {"name": "other"}}), "digest, apiKey and serial are immutable"),
        (json!({"serial": 2}), "digest, apiKey and serial are immutable"),
        (json!({"keyPrefix": null}), "keyPrefix is immutable"),
        (json!({"revoked": null}), "revoked cannot be unset or changed"),
        (json!({"revoked": {"reason": "Replaced"}}), "revoked cannot be unset or changed"),
    ] {
        let said = own.patch("key", change.clone()).await.expect_err("a tombstone changed");
        assert!(said.contains(expected), "{change}: {said}");
    }
    own.remove().await;
}

/// docs/limits.md has this figure.
#[tokio::test]
async fn the_largest_record_has_a_size_that_is_known() {
    let installation = Installation::new("crd-largest").await;
    let own = OwnRecords::old(&installation).await;
    own.upgrade().await;
    let digest = format!("sha256:{}", "0".repeat(64));
    let time = format!("2026-11-29T00:00:00.{}Z", "9".repeat(43));
    let networks: Vec<_> =
        (0..256).map(|index| format!("2001:1db8:1111:2222:3333:4444:5555:6{index:03x}/128")).collect();
    let scopes: Vec<_> = (0..32).map(|index| format!("{index:0>64}")).collect();
    assert_eq!((networks[255].len(), time.len()), (43, 64));
    let mut largest = own.record(
        &format!("{}-{}", "u".repeat(36), u32::MAX),
        json!({
            "digest": digest, "keyPrefix": "keyw1_abcdefgh", "serial": u32::MAX,
            "apiKey": {"namespace": "n".repeat(63), "name": "a".repeat(253), "uid": "u".repeat(36)},
            "owner": "o".repeat(128), "scopes": scopes, "allowedIPs": networks, "notAfter": time, "suspended": true,
            "revoked": {"at": time, "reason": "r".repeat(64)}, "rotateRequest": digest,
        }),
    );
    largest.metadata.labels = Some([("app.kubernetes.io/managed-by".into(), "keywright".into())].into());
    largest.metadata.annotations = Some([("keywright.dev/cause".into(), "SecretMissing".into())].into());
    let stored = own.records.create(&PostParams::default(), &largest).await.unwrap();
    let octets = serde_json::to_string(&stored).unwrap().len();
    println!("the largest record is stored in {octets} octets");
    assert!((15_000..17_000).contains(&octets), "{octets}");

    for (field, longer) in [
        ("owner", json!("o".repeat(129))),
        ("rotateRequest", json!("0".repeat(72))),
        ("notAfter", json!(time.replace('Z', "9Z"))),
        ("revoked", json!({"at": time.replace('Z', "9Z"), "reason": "Deleted"})),
        ("revoked", json!({"at": time, "reason": "r".repeat(65)})),
        ("keyPrefix", json!("keyw1_abcdefghi")),
        ("serial", json!(u64::from(u32::MAX) + 1)),
        ("apiKey", json!({"namespace": "n".repeat(64), "name": "a", "uid": "u"})),
        ("apiKey", json!({"namespace": "n", "name": "a".repeat(254), "uid": "u"})),
        ("apiKey", json!({"namespace": "n", "name": "a", "uid": "u".repeat(37)})),
    ] {
        let larger = own.record("larger", json!({ field: longer }));
        let refused = own.records.create(&PostParams::default(), &larger).await.map_err(message);
        let said = refused.expect_err("a larger record");
        assert!(said.contains(&format!("spec.{field}")), "{field}: {said}");
    }
    own.remove().await;
}

#[tokio::test]
async fn a_condition_of_a_later_version_is_stored() {
    let installation = Installation::new("crd-conditions").await;
    let api = installation.tenant::<ApiKey>();
    api.create(&PostParams::default(), &api_key("ci", json!({"owner": "ada"}))).await.unwrap();
    let good = json!({
        "type": "example.org/InUse", "status": "Unknown", "reason": "Asked,Twice:once_", "message": "m".repeat(32_768),
        "lastTransitionTime": "2026-11-29T00:00:00Z", "observedGeneration": 0,
    });
    let write = async |condition: &Value| {
        let patch = Patch::Merge(json!({"status": {"serial": 7, "conditions": [condition]}}));
        api.patch_status("ci", &PatchParams::default(), &patch).await.map_err(message)
    };
    let stored = write(&good).await.unwrap().status.unwrap();
    assert_eq!(stored.serial, Some(7));
    assert_eq!(serde_json::to_value(&stored.conditions[0]).unwrap(), good);
    for (field, value) in [
        ("type", json!("In Use")),
        ("type", json!("a".repeat(317))),
        ("type", json!("")),
        ("status", json!("true")),
        ("reason", json!("")),
        ("reason", json!("not a word")),
        ("reason", json!("1st")),
        ("reason", json!("a".repeat(1025))),
        ("message", json!("m".repeat(32_769))),
        ("lastTransitionTime", json!("yesterday")),
        ("observedGeneration", json!(-1)),
        ("reason", Value::Null),
    ] {
        let mut bad = good.clone();
        bad[field] = value.clone();
        let said = write(&bad).await.expect_err("a condition that no client reads");
        assert!(said.contains(&format!("status.conditions[0].{field}")), "{field} {value}: {said}");
    }
}

#[tokio::test]
async fn api_keys_are_found_by_owner_and_by_digest() {
    let installation = Installation::new("crd-selectable").await;
    let api = installation.tenant::<ApiKey>();
    let digest = format!("sha256:{}", "7".repeat(64));
    for (name, spec) in [
        ("one", json!({"owner": "ada@example.org", "keyHash": digest})),
        ("two", json!({"owner": "ada@example.org"})),
        ("three", json!({"owner": "bob"})),
    ] {
        api.create(&PostParams::default(), &api_key(name, spec)).await.unwrap();
    }
    for (selector, expected) in [
        (format!("spec.keyHash={digest}"), &["one"][..]),
        ("spec.owner=ada@example.org".to_owned(), &["one", "two"]),
        ("spec.owner=eve".to_owned(), &[]),
    ] {
        let found = api.list(&ListParams::default().fields(&selector)).await.unwrap();
        assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), expected, "{selector}");
    }
}

#[tokio::test]
async fn kubectl_prints_the_columns_that_people_look_for() {
    let installation = Installation::new("crd-columns").await;
    let api = installation.tenant::<ApiKey>();
    let spec = json!({"owner": "ada", "displayName": "Build", "allowedIPs": ["10.0.0.0/8"]});
    api.create(&PostParams::default(), &api_key("ci", spec)).await.unwrap();
    let header = |words: &[&str]| {
        let mut kubectl = installation.control_plane.kubectl(words);
        let printed = keywright_testing::output(kubectl.args(["--namespace", &installation.tenant_namespace])).unwrap();
        // Columns are apart by three spaces or more; names hold one.
        let split = |line: &str| {
            line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let lines: Vec<_> = printed.lines().map(split).collect();
        (lines[0].clone(), lines[1].clone())
    };
    let narrow = ["NAME", "OWNER", "KEY", "CREATED", "LAST USED", "EXPIRES", "STATUS"];
    for words in [["get", "apikeys"], ["get", "kwk"], ["get", "keywright"]] {
        let (columns, row) = header(&words);
        assert_eq!(columns, narrow, "{words:?}");
        assert_eq!(row[..2], ["ci", "ada"], "{words:?}");
    }
    let (columns, _) = header(&["get", "apikeys", "--output=wide"]);
    assert_eq!(columns, [&narrow[..], &["SECRET", "ALLOWED IPS", "DISPLAY NAME"]].concat());
    let names: BTreeMap<_, _> = custom_resource_definitions()
        .into_iter()
        .map(|crd| (crd.spec.names.plural, crd.spec.names.short_names))
        .collect();
    assert_eq!(names["apikeyrecords"], Some(vec!["kwr".to_owned()]));
}
