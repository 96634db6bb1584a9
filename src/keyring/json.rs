//! Reading JSON without a copy of any text in it.
//!
//! serde_json parses. What it would say about a mistake repeats the input, and what it would do with an escape leaves a
//! copy of the text in memory; so texts are borrowed, escapes are refused before, and of a mistake only the line is kept.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::KeyringError;

/// A value that borrows from the text it was read from.
pub(super) enum Value<'a> {
    Text(&'a str),
    Number(u64),
    List(Vec<Value<'a>>),
    Object(Vec<(&'a str, Value<'a>)>),
    /// Anything else, in which no form of ours is interested.
    Other,
}

pub(super) fn parse(text: &str) -> Result<Value<'_>, KeyringError> {
    if let Some(before) = text.find('\\') {
        return Err(KeyringError::MalformedFile {
            line: Some(1 + text[..before].matches('\n').count()),
            what: "it holds a backslash, and escapes are not read",
        });
    }
    serde_json::from_str(text).map_err(|error| KeyringError::MalformedFile {
        line: Some(error.line()),
        what: "it is not JSON",
    })
}

impl<'a> Value<'a> {
    /// The values of these fields, for each that there is.
    ///
    /// # Errors
    /// With the rule that is broken, when this is no object, or has other fields or one of them twice.
    pub(super) fn fields<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[Option<&Value<'a>>; N], &'static str> {
        let Self::Object(fields) = self else {
            return Err("it is not an object");
        };
        let mut values = [None; N];
        for (name, value) in fields {
            let index = names.iter().position(|known| known == name);
            let place = &mut values[index.ok_or("it has a field that this release does not know")?];
            if place.replace(value).is_some() && !cfg!(biplane_mutant = "repeated_fields_pass") {
                return Err("it has a field twice");
            }
        }
        Ok(values)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON without escapes")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::Text(text))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Value<'de>, E> {
                Ok(Value::Number(number))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_unit<E: Error>(self) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value<'de>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Value::List(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Value::Object(fields))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
