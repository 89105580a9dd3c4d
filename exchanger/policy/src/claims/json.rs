//! JSON read strictly: unique members at every level, bounded depth, borrowed where nothing is escaped.

use super::{Held, MAX_DEPTH, Value};
use crate::issuer::Kind;
use arcstr::Substr;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::{borrow::Cow, fmt};

/// JSON as it is read: unique members, bounded depth, borrowed where nothing is escaped.
pub(super) enum Node<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that is no `i64`; no claim that we know is one.
    Number(serde_json::Number),
    Text(Cow<'a, str>),
    Array(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl Node<'_> {
    pub(super) fn at(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |node, token| match node {
            Node::Object(members) => members.iter().find(|(name, _)| name == token).map(|(_, node)| node),
            Node::Array(items) => items.get(token.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The value as a claim of this kind; `keep` makes a text stay.
    pub(super) fn held(&self, kind: Kind, keep: &impl Fn(&str) -> Substr) -> Held {
        let value = match (kind, self) {
            (_, Node::Null) => return Held::Absent,
            (Kind::Text, node) => node.scalar().map(|text| Value::Text(keep(&text))),
            (Kind::Int, Node::Int(number)) => Some(Value::Int(*number)),
            (Kind::Int, Node::Text(text)) => canonical_int(text).map(Value::Int),
            (Kind::Bool, Node::Bool(yes)) => Some(Value::Bool(*yes)),
            (Kind::Bool, Node::Text(text)) => text.parse().ok().map(Value::Bool),
            (Kind::List, Node::Array(items)) => items
                .iter()
                .map(|item| item.scalar().map(Box::<str>::from))
                .collect::<Option<Box<[_]>>>()
                .map(Value::List),
            (Kind::Json, node) => Some(Value::Json(node.json())),
            _ => None,
        };
        value.map_or(Held::Unusable, Held::Is)
    }

    fn scalar(&self) -> Option<Cow<'_, str>> {
        match self {
            Node::Text(text) => Some(Cow::Borrowed(text)),
            Node::Int(number) => Some(Cow::Owned(number.to_string())),
            Node::Bool(yes) => Some(Cow::Borrowed(if *yes { "true" } else { "false" })),
            Node::Number(_) | Node::Null | Node::Array(_) | Node::Object(_) => None,
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Node::Null => serde_json::Value::Null,
            Node::Bool(yes) => (*yes).into(),
            Node::Int(number) => (*number).into(),
            Node::Number(number) => number.clone().into(),
            Node::Text(text) => text.clone().into_owned().into(),
            Node::Array(items) => items.iter().map(Node::json).collect(),
            Node::Object(members) => {
                members.iter().map(|(name, node)| (name.clone().into_owned(), node.json())).collect()
            }
        }
    }
}

/// A number in the one spelling that it has: no sign but `-`, no leading zero.
pub(crate) fn canonical_int(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|number| number.to_string() == text)
}

/// Reads one value at this depth.
pub(super) struct Strict {
    pub(super) depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Node<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E>(self, yes: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(yes))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Node<'de>, E> {
        Ok(Node::Int(number))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Node<'de>, E> {
        Ok(i64::try_from(number).map_or_else(|_| Node::Number(number.into()), Node::Int))
    }
    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Node<'de>, E> {
        serde_json::Number::from_f64(number).map(Node::Number).ok_or_else(|| E::custom("not a finite number"))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
        let depth = deeper(self.depth)?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict { depth })? {
            items.push(item);
        }
        Ok(Node::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let depth = deeper(self.depth)?;
        let mut members: Vec<(Cow<'de, str>, Node<'de>)> = Vec::with_capacity(if depth == 1 { 48 } else { 0 });
        let mut marks = 0;
        while let Some(Node::Text(name)) = map.next_key_seed(Strict { depth })? {
            let mark = mark(&name);
            if marks & mark != 0 && members.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom("duplicate member"));
            }
            marks |= mark;
            let node = map.next_value_seed(Strict { depth })?;
            members.push((name, node));
        }
        Ok(Node::Object(members))
    }
}

/// One of 128 bits, the same one for the same name: a name whose bit is not set yet is new.
fn mark(name: &str) -> u128 {
    let (first, last) = (name.bytes().next().unwrap_or(0), name.bytes().last().unwrap_or(0));
    1 << ((name.len() * 37 + usize::from(first) * 11 + usize::from(last)) % 128)
}

fn deeper<E: serde::de::Error>(depth: usize) -> Result<usize, E> {
    if depth < MAX_DEPTH { Ok(depth + 1) } else { Err(E::custom("nested too deep")) }
}
