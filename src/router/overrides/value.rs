//! JSON whose mistakes can be named without repeating them.
//!
//! serde_json parses, and says the line of what is no JSON. What it would say about a value repeats the value; so it makes
//! a tree without an opinion, in which fields that come twice are still two.

use std::{fmt, str::FromStr};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, ErrorKind};

pub(super) enum Value {
    Text(String),
    Number(u64),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
    /// Anything else, which nothing here is.
    Other,
}

/// A file that is not to be followed, because of what is at `place`.
pub(super) fn refused(place: &str, what: impl fmt::Display) -> Error {
    let text = match place {
        "" => format!("override file: {what}"),
        place => format!("override file, {place}: {what}"),
    };
    Error::new(ErrorKind::InvalidConfiguration).detail(text)
}

pub(super) fn parse(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| refused(&format!("line {}", error.line()), "it is not JSON"))
}

/// An object whose fields are taken out one by one, at a place that errors name.
pub(super) struct Fields<'a> {
    place: String,
    known: Vec<(&'a str, Option<&'a Value>)>,
}

impl<'a> Fields<'a> {
    /// The fields of an object, of these names, each once at most.
    pub(super) fn of(value: &'a Value, place: String, names: &[&'static str]) -> Result<Self, Error> {
        let Value::Object(fields) = value else {
            return Err(refused(&place, "it is not an object"));
        };
        let mut known: Vec<(&str, Option<&Value>)> = names.iter().map(|name| (*name, None)).collect();
        for (name, value) in fields {
            match known.iter_mut().find(|(known, _)| known == name) {
                None if cfg!(biplane_mutant = "overrides_pass_over_unknown_fields") => {}
                // What is no word may be anything, also what should have been a value.
                None if is_word(name) => {
                    return Err(refused(
                        &place,
                        format!("there is no field {name}; there are {}", names.join(", ")),
                    ));
                }
                None => {
                    return Err(refused(
                        &place,
                        format!("it has a field that is none of {}", names.join(", ")),
                    ));
                }
                Some((_, Some(_))) => {
                    return Err(refused(&place, format!("the field {name} is there twice")));
                }
                Some((_, empty)) => *empty = Some(value),
            }
        }
        Ok(Self { place, known })
    }

    pub(super) fn place(&self, field: &str) -> String {
        match &*self.place {
            "" => field.to_owned(),
            place => format!("{place}.{field}"),
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&'a Value> {
        self.known.iter().find(|(known, _)| *known == name)?.1
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Error> {
        match self.find(name) {
            None => Ok(None),
            Some(Value::Text(text)) if !text.trim().is_empty() => Ok(Some(text)),
            Some(_) => Err(refused(&self.place(name), "it is not a text, or an empty one")),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        match self.find(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(*number)),
            Some(_) => Err(refused(&self.place(name), "it is not a whole number")),
        }
    }

    pub(super) fn list(&self, name: &str) -> Result<&'a [Value], Error> {
        match self.find(name) {
            None => Ok(&[]),
            Some(Value::List(list)) => Ok(list),
            Some(_) => Err(refused(&self.place(name), "it is not a list")),
        }
    }

    /// A text that something can be read from; what its own error would say is not repeated.
    pub(super) fn parsed<T: FromStr>(&self, name: &str, is: &str) -> Result<Option<T>, Error> {
        let text = self.text(name)?;
        text.map(|text| {
            text.parse()
                .map_err(|_| refused(&self.place(name), format!("it is not {is}")))
        })
        .transpose()
    }

    pub(super) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| refused(&self.place, format!("the field {name} is missing")))
    }
}

fn is_word(name: &str) -> bool {
    name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Value::List(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                // Nothing of ours is that large.
                if fields.len() > 100 {
                    return Err(A::Error::custom("too many fields"));
                }
                Ok(Value::Object(fields))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
