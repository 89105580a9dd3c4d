//! JSON Schemas of policy files, for editors, made from the types that read them.

use crate::document::{At, CasesFile, GuardsFile, ScopeFile, Table, Tree, Wanted};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};
use std::borrow::Cow;

/// The schemas by the name of their file: `guards`, `scope`, `cases`. That of grants depends on what makes their
/// credentials.
#[must_use]
pub fn schemas() -> [(&'static str, Schema); 3] {
    [("guards", schema_for!(GuardsFile)), ("scope", schema_for!(ScopeFile)), ("cases", schema_for!(CasesFile))]
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<V: JsonSchema> JsonSchema for Table<V> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("TableOf{}", V::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": generator.subschema_for::<V>() })
    }
}

impl JsonSchema for Wanted {
    fn schema_name() -> Cow<'static, str> {
        "Matcher".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let scalar = || json_schema!({ "type": ["string", "number", "boolean"] });
        let pattern = || {
            json_schema!({
                "type": "object",
                "properties": {
                    "glob": { "type": "string", "description": "`*` stands for any text without `/`" },
                    "regex": { "type": "string", "description": "matched against the whole value" },
                },
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": false,
            })
        };
        json_schema!({
            "description": "What a claim has to be: a value, any of a list, or an operator.",
            "anyOf": [
                scalar(),
                { "type": "array", "minItems": 1, "items": { "anyOf": [scalar(), pattern()] } },
                pattern(),
                {
                    "type": "object",
                    "properties": { "contains": scalar(), "absent": { "const": true } },
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": false,
                },
            ],
        })
    }
}

impl JsonSchema for Tree {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Any".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
    }
}
