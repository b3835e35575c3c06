//! Bodies that kubectl sends as protocol buffers: of Kubernetes' own kinds, the fields that the
//! mesh knows (`k8s.io/api`, `generated.proto` of each group).

use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// The form of a field.
enum Form {
    Bytes,
    Number,
    Text,
    Fields(&'static [Field]),
    /// Entries of a map.
    Map(&'static Self),
}

struct Field {
    tag: u64,
    name: &'static str,
    form: Form,
    many: bool,
}

/// A body that begins as Kubernetes' protocol buffers do, as JSON; `None` for a kind that is not
/// known here and for rubbish.
pub(super) fn read(body: &[u8]) -> Option<Value> {
    let envelope = object(body.strip_prefix(MAGIC)?, &ENVELOPE, 0)?;
    let kind = envelope.pointer("/type/kind")?.as_str()?;
    let fields = match kind {
        "Namespace" | "ServiceAccount" | "SelfSubjectReview" => &PLAIN[..],
        "ConfigMap" => &CONFIG_MAP,
        "Secret" => &SECRET,
        "TokenRequest" => &TOKEN_REQUEST,
        "SelfSubjectAccessReview" => &ACCESS_REVIEW,
        "Role" => &ROLE,
        "RoleBinding" => &ROLE_BINDING,
        _ => return None,
    };
    let raw = STANDARD.decode(envelope.get("raw")?.as_str()?).ok()?;
    let mut found = object(&raw, fields, 0)?;
    let whole = found.as_object_mut()?;
    whole.insert("kind".to_owned(), json!(kind));
    whole.insert("apiVersion".to_owned(), envelope.pointer("/type/apiVersion")?.clone());
    Some(found)
}

/// True for a body of that form.
pub(super) fn is_it(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

fn object(mut bytes: &[u8], fields: &[Field], depth: u32) -> Option<Value> {
    let mut found = Map::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = fields.iter().find(|field| field.tag == key >> 3);
        let value = match key & 7 {
            0 => {
                let number = varint(&mut bytes)?;
                field.filter(|field| matches!(field.form, Number)).map(|_| json!(number))
            }
            1 => take(&mut bytes, 8).map(|_| None)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, length)?;
                match field {
                    Some(field) => value(inner, &field.form, depth)?,
                    None => None,
                }
            }
            5 => take(&mut bytes, 4).map(|_| None)?,
            _ => return None,
        };
        let (Some(field), Some(value)) = (field, value) else { continue };
        let name = field.name.to_owned();
        match (&field.form, found.get_mut(&name)) {
            (Form::Map(_), Some(Value::Object(map))) => {
                map.extend(value.as_object().cloned().unwrap_or_default());
            }
            (_, Some(Value::Array(items))) if field.many => items.push(value),
            _ if field.many => drop(found.insert(name, json!([value]))),
            _ => drop(found.insert(name, value)),
        }
    }
    Some(Value::Object(found))
}

/// A field's value; the inner `None` for an empty text, which means that nothing was said.
fn value(bytes: &[u8], form: &Form, depth: u32) -> Option<Option<Value>> {
    match form {
        Number => None,
        Bytes => Some(Some(json!(STANDARD.encode(bytes)))),
        Text => {
            let text = str::from_utf8(bytes).ok()?;
            Some((!text.is_empty()).then(|| json!(text)))
        }
        Fields(fields) => {
            let inner =
                if depth < DEPTH { object(bytes, fields, depth + 1)? } else { return None };
            Some(Some(inner))
        }
        Form::Map(of) => {
            let mut bytes = bytes;
            let (mut key, mut inner) = (String::new(), json!(""));
            while !bytes.is_empty() {
                let tag = varint(&mut bytes)?;
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let part = take(&mut bytes, length)?;
                match tag {
                    0x0a => key = str::from_utf8(part).ok()?.to_owned(),
                    0x12 => inner = value(part, of, depth)?.unwrap_or_else(|| json!("")),
                    _ => return None,
                }
            }
            Some(Some(json!({key: inner})))
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

const fn one(tag: u64, name: &'static str, form: Form) -> Field {
    Field { tag, name, form, many: false }
}

const fn many(tag: u64, name: &'static str, form: Form) -> Field {
    Field { tag, name, form, many: true }
}

use Form::{Bytes, Fields, Number, Text};

static ENVELOPE: [Field; 2] = [
    one(1, "type", Fields(&[one(1, "apiVersion", Text), one(2, "kind", Text)])),
    one(2, "raw", Bytes),
];
static METADATA: [Field; 5] = [
    one(1, "name", Text),
    one(2, "generateName", Text),
    one(3, "namespace", Text),
    one(11, "labels", Form::Map(&Text)),
    one(12, "annotations", Form::Map(&Text)),
];
static PLAIN: [Field; 1] = [one(1, "metadata", Fields(&METADATA))];
static CONFIG_MAP: [Field; 2] =
    [one(1, "metadata", Fields(&METADATA)), one(2, "data", Form::Map(&Text))];
static SECRET: [Field; 4] = [
    one(1, "metadata", Fields(&METADATA)),
    one(2, "data", Form::Map(&Bytes)),
    one(3, "type", Text),
    one(4, "stringData", Form::Map(&Text)),
];
static TOKEN_REQUEST: [Field; 2] = [
    one(1, "metadata", Fields(&METADATA)),
    one(
        2,
        "spec",
        Fields(&[
            many(1, "audiences", Text),
            one(
                3,
                "boundObjectRef",
                Fields(&[
                    one(1, "kind", Text),
                    one(2, "apiVersion", Text),
                    one(3, "name", Text),
                    one(4, "uid", Text),
                ]),
            ),
            one(4, "expirationSeconds", Number),
        ]),
    ),
];
static ACCESS_REVIEW: [Field; 2] = [
    one(1, "metadata", Fields(&METADATA)),
    one(
        2,
        "spec",
        Fields(&[
            one(
                1,
                "resourceAttributes",
                Fields(&[
                    one(1, "namespace", Text),
                    one(2, "verb", Text),
                    one(3, "group", Text),
                    one(4, "version", Text),
                    one(5, "resource", Text),
                    one(6, "subresource", Text),
                    one(7, "name", Text),
                ]),
            ),
            one(2, "nonResourceAttributes", Fields(&[one(1, "path", Text), one(2, "verb", Text)])),
        ]),
    ),
];
static ROLE: [Field; 2] = [
    one(1, "metadata", Fields(&METADATA)),
    many(
        2,
        "rules",
        Fields(&[
            many(1, "verbs", Text),
            many(2, "apiGroups", Text),
            many(3, "resources", Text),
            many(4, "resourceNames", Text),
        ]),
    ),
];
static ROLE_BINDING: [Field; 3] = [
    one(1, "metadata", Fields(&METADATA)),
    many(
        2,
        "subjects",
        Fields(&[
            one(1, "kind", Text),
            one(2, "apiGroup", Text),
            one(3, "name", Text),
            one(4, "namespace", Text),
        ]),
    ),
    one(
        3,
        "roleRef",
        Fields(&[one(1, "apiGroup", Text), one(2, "kind", Text), one(3, "name", Text)]),
    ),
];

/// What stands before each body of this form.
const MAGIC: &[u8] = b"k8s\0";
/// Deeper than any of the forms here.
const DEPTH: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_request_of_kubectl_is_read() {
        let body = b"k8s\0\x0a\x28\x0a\x18authentication.k8s.io/v1\x12\x0cTokenRequest\x12\x1d\x0a\x0c\x0a\x00\x12\x00\x1a\x00\"\x00*\x002\x00\x12\x0d\x0a\x08istio-ca \xd8\x04";
        let made = read(body).unwrap();
        assert_eq!(made["kind"], "TokenRequest");
        assert_eq!(made["apiVersion"], "authentication.k8s.io/v1");
        assert_eq!(made["spec"], json!({"audiences": ["istio-ca"], "expirationSeconds": 600}));
        assert_eq!(made["metadata"], json!({}));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let body = [MAGIC, &bytes].concat();
            let _any = read(&body);
            for fields in [&SECRET[..], &TOKEN_REQUEST, &ROLE_BINDING, &ENVELOPE] {
                let _any = object(&bytes, fields, 0);
            }
        }
    }
}
