//! Rights that a grant gives its role besides the roles whose member it is: on schemas of one or several
//! databases, and statements of its own. Everything becomes SQL text in here or in [`super::sql`].

use super::{
    MintError,
    sql::{Identifier, literal},
};
use crate::backends::{spec, spec::SpecReader};
use jobpass_policy::{FieldRules, Permit, Template};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

/// What a job may do in one schema.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivilegesFile {
    /// The database, if it is not the one that the job is told. Another one of the same cluster.
    pub database: Option<String>,
    /// The schema, a template over stable claims.
    pub schema: String,
    /// Its tables and views, as templates over stable claims. Default: all that there are when the job asks.
    pub tables: Option<Vec<String>>,
    /// What may be done there.
    pub allow: Vec<Privilege>,
}

/// What may be done in a schema. To use the schema itself is always a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Privilege {
    /// Read rows.
    Select,
    /// Add rows.
    Insert,
    /// Change rows.
    Update,
    /// Delete rows.
    Delete,
    /// Empty tables.
    Truncate,
    /// Refer to tables.
    References,
    /// Make triggers on tables.
    Trigger,
    /// Take numbers from all the schema's sequences.
    Sequences,
    /// Run all the schema's functions.
    Execute,
    /// Make tables and other objects; they are the job's, and go with it.
    Create,
}

impl Privilege {
    /// As it stands before `ON TABLE`; `None` for what is no right on tables.
    const fn on_tables(self) -> Option<&'static str> {
        match self {
            Self::Select => Some("SELECT"),
            Self::Insert => Some("INSERT"),
            Self::Update => Some("UPDATE"),
            Self::Delete => Some("DELETE"),
            Self::Truncate => Some("TRUNCATE"),
            Self::References => Some("REFERENCES"),
            Self::Trigger => Some("TRIGGER"),
            Self::Sequences | Self::Execute | Self::Create => None,
        }
    }
}

const NAME: FieldRules = FieldRules {
    authority: true,
    allowed: |c| !c.is_control(),
    max_len: 63,
    expected: "a name of 63 bytes without control characters",
};

const VALUE: FieldRules =
    FieldRules { authority: true, allowed: |c| !c.is_control(), max_len: 1024, expected: "no control characters" };

/// What a statement may begin with. Nothing that ends a transaction or changes the session.
const VERBS: &[&str] = &["ALTER", "COMMENT", "CREATE", "GRANT", "REVOKE", "SELECT"];

/// A grant's rights, as it was loaded.
pub(super) struct Rights {
    privileges: Vec<Privileges>,
    statements: Vec<Vec<Part>>,
}

struct Privileges {
    database: Option<String>,
    schema: Template,
    tables: Option<Vec<Template>>,
    allow: Vec<Privilege>,
}

enum Part {
    Fixed(String),
    Role,
    /// A claim as a string constant.
    Literal(Template),
    /// A claim as a name.
    Name(Template),
}

/// The statements for one role, by database.
#[derive(Debug, Default)]
pub(super) struct Statements {
    /// Those of the transaction that makes the role.
    pub(super) home: Vec<String>,
    /// Those of other databases.
    pub(super) elsewhere: BTreeMap<String, Vec<String>>,
}

impl Statements {
    /// What they say but for the role's name.
    pub(super) fn without(&self, role: &str) -> String {
        json!([self.home, self.elsewhere]).to_string().replace(role, "")
    }
}

impl Rights {
    pub(super) fn read(reader: &mut SpecReader<'_>, privileges: &[PrivilegesFile], statements: &[String]) -> Self {
        let mut read = Vec::with_capacity(privileges.len());
        for (index, file) in privileges.iter().enumerate() {
            let at = index.to_string();
            if file.allow.is_empty() {
                reader.refuse(&["privileges", &at, "allow"], "nothing is allowed here", "name at least one privilege");
            }
            let tables_only = file.allow.iter().any(|privilege| privilege.on_tables().is_some());
            if file.tables.as_ref().is_some_and(Vec::is_empty) || (file.tables.is_some() && !tables_only) {
                let cure = "name tables and what may be done with them, or leave `tables` out";
                reader.refuse(&["privileges", &at, "tables"], "nothing is allowed on tables here", cure);
            }
            if file.database.as_ref().is_some_and(|name| Identifier::parse(name).is_err()) {
                reader.refuse(
                    &["privileges", &at, "database"],
                    "expected a database's name",
                    "leave it out for the job's",
                );
            }
            let schema = reader.template(&["privileges", &at, "schema"], &file.schema, &NAME);
            let mut tables = Vec::new();
            for (index, text) in file.tables.iter().flatten().enumerate() {
                tables.extend(reader.template(&["privileges", &at, "tables", &index.to_string()], text, &NAME));
            }
            let tables = file.tables.as_ref().map(|_| tables);
            read.extend(schema.map(|schema| Privileges {
                database: file.database.clone(),
                schema,
                tables,
                allow: file.allow.clone(),
            }));
        }
        let statements = statements.iter().enumerate().filter_map(|(index, text)| statement(reader, index, text));
        Self { privileges: read, statements: statements.collect() }
    }

    /// The statements for `role`; `home` is the database that the server's own connections are to.
    pub(super) fn render(
        &self,
        permit: &Permit,
        role: &Identifier,
        home: &str,
        told: &str,
    ) -> Result<Statements, MintError> {
        let mut made = Statements::default();
        let name = |field: &str, template: &Template| {
            let text = spec::render(field, template, permit)?;
            Identifier::parse(&text).map_err(|error| spec::unfit(field, &error))
        };
        for (index, Privileges { database, schema, tables, allow }) in self.privileges.iter().enumerate() {
            let field = format!("credential.privileges.{index}");
            let schema = name(&format!("{field}.schema"), schema)?;
            let tables = tables.as_ref().map(|tables| {
                let one = |(index, table)| name(&format!("{field}.tables.{index}"), table);
                tables.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
            });
            let statements = grants(role, &schema, tables.transpose()?.as_deref(), allow);
            let database = database.as_deref().unwrap_or(told);
            if database == home {
                made.home.extend(statements);
            } else {
                made.elsewhere.entry(database.to_owned()).or_default().extend(statements);
            }
        }
        for (index, parts) in self.statements.iter().enumerate() {
            let field = format!("credential.statements.{index}");
            let mut text = String::new();
            for part in parts {
                match part {
                    Part::Fixed(fixed) => text.push_str(fixed),
                    Part::Role => text.push_str(&role.to_string()),
                    Part::Literal(template) => text.push_str(&literal(&spec::render(&field, template, permit)?)),
                    Part::Name(template) => text.push_str(&name(&field, template)?.to_string()),
                }
            }
            made.home.push(text);
        }
        Ok(made)
    }
}

fn grants(role: &Identifier, schema: &Identifier, tables: Option<&[Identifier]>, allow: &[Privilege]) -> Vec<String> {
    let mut statements = vec![format!("GRANT USAGE ON SCHEMA {schema} TO {role}")];
    let on_tables: Vec<&str> = allow.iter().filter_map(|privilege| privilege.on_tables()).collect();
    if !on_tables.is_empty() {
        let tables = match tables {
            None => format!("ALL TABLES IN SCHEMA {schema}"),
            Some(tables) => tables.iter().map(|table| format!("{schema}.{table}")).collect::<Vec<_>>().join(", "),
        };
        statements.push(format!("GRANT {} ON {tables} TO {role}", on_tables.join(", ")));
    }
    for (privilege, what) in [
        (Privilege::Sequences, "USAGE ON ALL SEQUENCES IN"),
        (Privilege::Execute, "EXECUTE ON ALL FUNCTIONS IN"),
        (Privilege::Create, "CREATE ON"),
    ] {
        if allow.contains(&privilege) {
            statements.push(format!("GRANT {what} SCHEMA {schema} TO {role}"));
        }
    }
    statements
}

/// Reads a statement. Its fixed text holds no quote, so that a place in it is never inside of one.
fn statement(reader: &mut SpecReader<'_>, index: usize, text: &str) -> Option<Vec<Part>> {
    let at = index.to_string();
    let path = ["statements", at.as_str()];
    let mut parts = Vec::new();
    let mut rest = text.trim();
    let verb = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !VERBS.contains(&verb.as_str()) {
        let cure = format!("begin with one of {}", VERBS.join(", "));
        reader.refuse(&path, "this statement is none of those that may be run", cure);
        return None;
    }
    while !rest.is_empty() {
        let (fixed, place) = match rest.split_once("{{") {
            None => (std::mem::take(&mut rest), None),
            Some((fixed, after)) => match after.split_once("}}") {
                Some((place, after)) => {
                    rest = after;
                    (fixed, Some(place.trim()))
                }
                None => {
                    reader.refuse(&path, "`{{` without `}}`", "write {{ role }} or {{ claims.NAME }}");
                    return None;
                }
            },
        };
        let is_quote = |c: char| matches!(c, '\'' | '"' | '\\' | '$' | ';' | '\0');
        if fixed.contains(is_quote) || fixed.contains("--") || fixed.contains("/*") {
            let cure =
                "claims are quoted by themselves: {{ claims.NAME }}, or {{ claims.NAME | identifier }} for a name";
            reader.refuse(&path, "quotes, `\\`, `$`, `;` and comments may not stand in a statement", cure);
            return None;
        }
        parts.push(Part::Fixed(fixed.to_owned()));
        match place {
            None => {}
            Some("role") => parts.push(Part::Role),
            Some(place) => {
                let (claim, name) = match place.strip_suffix("identifier").map(str::trim_end) {
                    Some(claim) if claim.ends_with('|') => (claim.trim_end_matches('|').trim_end(), true),
                    _ => (place, false),
                };
                let rules = if name { &NAME } else { &VALUE };
                let template = reader.template(&path, &format!("{{{{ {claim} }}}}"), rules)?;
                parts.push(if name { Part::Name(template) } else { Part::Literal(template) });
            }
        }
    }
    Some(parts)
}
