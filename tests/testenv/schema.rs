//! Whether JSON is as its schema in docs/ or tests/fixtures/registration/ has it, as far as these schemas go: a word of theirs that is
//! not known here is an error too.

use serde_json::Value;

/// The value is as `schema` has it.
#[track_caller]
pub(crate) fn assert_valid(schema: &Value, value: &Value) {
    let wrong = wrong_by(schema, value);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What of `value` is not as `schema` has it.
pub(crate) fn wrong_by(schema: &Value, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    validate(schema, value, "$", &mut errors);
    errors
}

fn validate(schema: &Value, value: &Value, place: &str, errors: &mut Vec<String>) {
    for (word, rule) in schema.as_object().unwrap() {
        let holds = match word.as_str() {
            "$schema" | "title" | "description" => true,
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "type" => match rule {
                Value::Array(types) => types.iter().any(|one| is_of(one, value, place)),
                one => is_of(one, value, place),
            },
            "additionalProperties" => {
                assert_eq!(rule, false, "{place}: {word} is not known to the tests otherwise");
                let known = schema.get("properties").and_then(Value::as_object);
                let is_known = |key: &String| known.is_some_and(|known| known.contains_key(key));
                value.as_object().is_none_or(|object| object.keys().all(is_known))
            }
            "minProperties" => value.as_object().is_none_or(|object| object.len() as u64 >= rule.as_u64().unwrap()),
            "minItems" => value.as_array().is_some_and(|items| items.len() as u64 >= rule.as_u64().unwrap()),
            "required" => {
                !value.is_object() || rule.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some())
            }
            "properties" => {
                for (key, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        validate(rule, value, &format!("{place}.{key}"), errors);
                    }
                }
                true
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    validate(rule, value, &format!("{place}[{index}]"), errors);
                }
                true
            }
            other => panic!("{place}: {other} is not known to the tests"),
        };
        if !holds {
            errors.push(format!("{place}: {value} is not {word} {rule}"));
        }
    }
}

fn is_of(kind: &Value, value: &Value, place: &str) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        other => panic!("{place}: type {other} is not known to the tests"),
    }
}
