//! Pieces of OpenAPI schema and CEL that serde's types cannot express.
//!
//! CEL functions: <https://kubernetes.io/docs/reference/using-api/cel/>; the floor is Kubernetes 1.33.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube_core::Rule;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::secret_template::SecretType;

/// A list of addresses and networks, with the rules of [`crate::address::Network`].
///
/// `isIP` and `isCIDR` refuse leading zeros, zones and IPv4-mapped addresses. They accept host bits, mixed notation and
/// addresses that no client can have, so other rules refuse those. CEL cannot write the IPv4-mapped block. `::fffe:0:0`
/// lies just below it: a network of /80 to /95 that contains this address overlaps the block.
pub(super) fn allowed_ips(_: &mut SchemaGenerator) -> Schema {
    let address = "isIP(self) && !ip(self).isUnspecified() && !ip(self).isLinkLocalMulticast() \
        && !(cidr('224.0.0.0/4').containsIP(self) || cidr('ff00::/8').containsIP(self)) && self != '255.255.255.255'";
    let network = "isCIDR(self) && cidr(self) == cidr(self).masked() \
        && !(cidr('224.0.0.0/4').containsCIDR(self) || cidr('ff00::/8').containsCIDR(self)) \
        && !(cidr(self).prefixLength() == (cidr(self).ip().family() == 4 ? 32 : 128) \
            && (cidr(self).ip().isUnspecified() || self == '255.255.255.255/32')) \
        && !(cidr(self).ip().family() == 6 && cidr(self).prefixLength() >= 80 && cidr(self).prefixLength() <= 95 \
            && cidr(self).containsIP('::fffe:0:0'))";
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "x-kubernetes-list-type": "set",
        "x-kubernetes-validations": [{
            "rule": "size(self) > 0",
            "message": "an empty list allows nobody: leave the field out to allow any address",
        }],
        "items": {
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [
                {
                    "rule": "!self.contains(',')",
                    "message": "one address or CIDR for each item: write a list instead of commas",
                },
                {
                    "rule": r"!self.matches('^([0-9.]+(/[0-9]+)?|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}$')",
                    "message": "has a port: write the address without it",
                },
                {
                    "rule": format!("self.contains(',') || (!(self.contains(':') && self.contains('.')) && (({address}) || ({network})))"),
                    "message": "must be an IPv4 or IPv6 address or a CIDR without host bits, such as 192.0.2.7, \
                        10.0.0.0/8 or 2001:db8::/32: no leading zeros, spaces, zones, ports, ranges or names, \
                        no IPv4-mapped IPv6, and not the unspecified, the broadcast or a multicast address",
                },
            ],
        },
    })
}

/// A list of scopes: opaque words.
pub(super) fn scopes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": 64,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[A-Za-z0-9._:/-]{1,64}$')",
                "message": "a scope is 1 to 64 letters, digits and ._:/-",
            }],
        },
    })
}

/// The types of [`crate::secret_template::SecretType`].
pub(super) fn secret_type(_: &mut SchemaGenerator) -> Schema {
    // The length is for the estimated cost of rules about it.
    json_schema!({"type": "string", "maxLength": 24, "enum": SecretType::ALL.map(SecretType::as_str)})
}

/// Texts with the grammar of [`crate::secret_template::Text`], by the data keys of a Secret.
pub(super) fn template_data(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "type": "string",
            "maxLength": 4096,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{A_KEY}') || self.matches('^([^$]|[$][$]|[$][(](KEY|NAME|NAMESPACE|PREFIX|EXPIRES_AT)[)])*$')"),
                "message": "a $ must begin $(KEY), $(NAME), $(NAMESPACE), $(PREFIX) or $(EXPIRES_AT): write $$ for a dollar",
            }],
        },
        "x-kubernetes-validations": [
            {
                "rule": "self.all(name, name.matches('^[-._a-zA-Z0-9]{1,253}$') && name != '.' && !name.startsWith('..'))",
                "message": "an entry must be named as a Secret's data key: 1 to 253 letters, digits and -._, and not . or \
                    beginning with ..",
            },
            holds_no_key(),
        ],
    })
}

/// Labels that a template may give a Secret.
pub(super) fn template_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{A_KEY}') || !format.labelValue().validate(self).hasValue()"),
                "message": "must be a label's value: at most 63 letters, digits and -._, the first and last of them a letter \
                    or digit",
            }],
        },
        "x-kubernetes-validations": [is_named_well(), is_not_reserved(), holds_no_key()],
    })
}

/// Annotations that a template may give a Secret.
pub(super) fn template_annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 4096,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{A_KEY}') || !self.contains('$(')"),
                "message": "must not hold $(: annotations have no variables, as more people may read them than Secrets",
            }],
        },
        "x-kubernetes-validations": [is_named_well(), is_not_reserved(), holds_no_key()],
    })
}

/// What [`crate::key::may_hold_a_key`] finds. The API server repeats a value that a rule of its own refuses, so that such
/// a text is refused by a rule of the map.
const A_KEY: &str = "(?i)keyw[0-9]_[0-9a-z]{9}";

fn holds_no_key() -> Value {
    json!({
        "rule": format!("!self.exists(name, self[name].matches('{A_KEY}'))"),
        "message": "an entry looks like it holds a key, and no field may hold one; treat it as leaked",
    })
}

fn is_named_well() -> Value {
    json!({
        "rule": "self.all(name, !format.qualifiedName().validate(name).hasValue())",
        "message": "labels and annotations must be named as in Kubernetes: an optional DNS name and /, then 1 to 63 letters, \
            digits and -._, the first and last of them a letter or digit",
    })
}

fn is_not_reserved() -> Value {
    json!({
        "rule": "!self.exists(name, name.matches('^(([^/]*[.])?keywright[.]dev|kubernetes[.]io)/') \
            || name in ['app.kubernetes.io/managed-by', 'kubectl.kubernetes.io/last-applied-configuration'])",
        "message": "names under keywright.dev/ and kubernetes.io/, app.kubernetes.io/managed-by and \
            kubectl.kubernetes.io/last-applied-configuration are reserved: choose another name",
    })
}

/// A condition's `type`, as in `metav1.Condition`.
pub(super) fn condition_type(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 316,
        "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
    })
}

/// A condition's `reason`, as in `metav1.Condition`.
pub(super) fn condition_reason(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 1024,
        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    })
}

/// CEL: the seconds of a duration such as `1d12h`. `text` is the expression that holds it.
pub(super) fn seconds(text: &str) -> String {
    [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)]
        .map(|(unit, seconds)| {
            format!("{text}.findAll('[0-9]+{unit}').map(n, int(n.substring(0, size(n) - 1))).sum() * {seconds}")
        })
        .join(" + ")
}

/// CEL: `text` is a duration as in [`crate::duration`]. At most nine digits a unit keep the sum within 64 bits.
pub(super) fn is_duration(text: &str) -> String {
    format!("{text}.matches('^([0-9]{{1,9}}[dhms])+$')")
}

/// A list that is always written as a whole. In a set, the API server repeats each item in `managedFields`, which would
/// double the size of the largest record.
pub(super) fn written_as_a_whole(mut list: Schema) -> Schema {
    list.insert("x-kubernetes-list-type".to_owned(), "atomic".into());
    list
}

/// Common mistakes in durations get their own message: a number without a unit. The messages are fixed text, because a
/// `messageExpression` costs more than the API server allows.
pub(super) fn has_unit() -> Rule {
    Rule::new("!self.matches('^[0-9]+$')").message("a number needs a unit: did you mean days, as in 30d?")
}

/// A duration in weeks, months or years. See [`has_unit`].
pub(super) fn has_known_units() -> Rule {
    Rule::new("!self.matches('(?i)^ *[0-9]+ *(w|weeks?|mo|months?|y|years?) *$')")
        .message("weeks, months and years are written in days: did you mean 7d, 30d or 365d for each?")
}

/// A duration in days that is not a number and a small `d`. See [`has_unit`].
pub(super) fn has_bare_units() -> Rule {
    Rule::new("self.matches('^[0-9]+d$') || !self.matches('(?i)^ *[0-9]+ *d(ays?)? *$')")
        .message("days are a number and a small d, without spaces: did you mean, say, 30d?")
}

/// `never` in other letter cases. See [`has_unit`].
pub(super) fn has_never_as_written() -> Rule {
    Rule::new("self == 'Never' || !self.matches('(?i)^ *never *$')").message("did you mean Never?")
}

/// The CRD without two things that the derived schema adds. `nullable` would store a `null` instead of dropping it, and
/// every rule would have to expect it. `uint32` is a format that OpenAPI does not have. Adds `rules` over the whole
/// object, because kube's derive needs the `kube` crate for those.
pub(super) fn finish(mut crd: CustomResourceDefinition, rules: &[ValidationRule]) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            tidy(schema);
            schema.x_kubernetes_validations = (!rules.is_empty()).then(|| rules.to_vec());
        }
    }
    crd
}

fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.format.take_if(|format| format == "uint32");
    schema.properties.iter_mut().flatten().for_each(|(_, property)| tidy(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = schema.items.as_mut() {
        tidy(items);
    }
}
