//! `when:` conditions: CEL in a profile that cannot run long and cannot be misread.
//!
//! No comprehensions, no regular expressions, no arithmetic, a bounded source and a bounded tree.
//! Names and types are checked against the issuer's profile when the policy is loaded. At run time
//! an error denies, and so does a claim of an unknown form.

mod meaning;
mod partial;

pub(crate) use partial::Known;

use crate::{
    claims::{Claims, Held, Value},
    grant::Check,
    issuer::{Kind, Profile, Slot},
    pattern::Matcher,
    source::did_you_mean,
};
use cel::{
    Context, Env, Program,
    common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators as op},
    objects::{Key, Map},
    parser::Macro,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

/// The longest condition, in bytes.
pub const MAX_CONDITION_BYTES: usize = 4 * 1024;
/// How deep, and how large, its tree may be: it is walked by recursion at every decision.
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 512;
/// Room for parsing the deepest source that fits; a small stack would end the process.
const COMPILE_STACK_BYTES: usize = 64 << 20;
/// What is so short and has so few operators and brackets fits on any stack.
const SHORT: usize = 256;
const FEW: usize = 32;

/// Why a text is not a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// Longer or deeper than a condition may be.
    #[error("the condition is too long: at most {MAX_CONDITION_BYTES} bytes, {MAX_DEPTH} levels and {MAX_NODES} parts")]
    TooLarge,
    /// Not CEL.
    #[error("not a CEL expression: {0}")]
    Syntax(String),
    /// A function or operator that conditions do not have.
    #[error("`{0}` is not available in conditions")]
    Function(String),
    /// A variable that conditions do not have.
    #[error("there is no `{0}` in conditions")]
    Variable(String),
    /// A claim that the issuer's tokens do not have.
    #[error("{profile} tokens have no claim `{claim}`{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownClaim {
        /// The claim.
        claim: String,
        /// The CI.
        profile: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// An operand of the wrong type.
    #[error("`{operator}` cannot take {left} and {right}")]
    Types {
        /// The operator.
        operator: String,
        /// What stands left.
        left: String,
        /// What stands right.
        right: String,
    },
    /// Something that is not true or false.
    #[error("the condition is {0}, not true or false")]
    NotBool(String),
    /// The same answer for every token.
    #[error("the condition reads no claim")]
    NoClaim,
}

impl ConditionError {
    /// How to repair it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::TooLarge => "split the rule, or use matchers".to_owned(),
            Self::Syntax(_) => "for example: claims.run_attempt == \"1\"".to_owned(),
            Self::Function(_) => {
                "there are: && || ! == != < <= > >= in ?: has() size() startsWith() endsWith() contains()".to_owned()
            }
            Self::Variable(_) => "claims are read as claims.NAME or claims[\"NAME\"]".to_owned(),
            Self::UnknownClaim { .. } => "name a claim of this issuer's tokens".to_owned(),
            Self::Types { .. } => {
                "compare a claim with a value of its own type: \"1\" is text, 1 is a number".to_owned()
            }
            Self::NotBool(_) => "compare it with something".to_owned(),
            Self::NoClaim => "leave `when` out, or compare a claim".to_owned(),
        }
    }
}

/// A condition that is safe to evaluate.
///
/// INVARIANT: made by [`Condition::compile`] only, so every name and type in it is right.
pub struct Condition {
    source: Box<str>,
    program: Program,
    reads: Vec<Read>,
    conjuncts: Option<Vec<Check>>,
}

struct Read {
    claim: Box<str>,
    slot: Slot,
    key: Key,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.source).finish()
    }
}

/// What a condition read, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionTrace {
    /// The condition as written.
    pub source: String,
    /// The claims that it reads, and what the token says; values that the audit log may not hold
    /// are left out.
    pub reads: Vec<(String, Option<String>)>,
    /// Whether it holds; an error does not.
    pub holds: bool,
    /// Why it could not be evaluated.
    pub error: Option<String>,
}

impl ConditionTrace {
    /// The condition in words.
    #[must_use]
    pub fn summary(&self) -> String {
        let reads: Vec<_> = self
            .reads
            .iter()
            .map(|(claim, got)| format!("`{claim}` is {}", got.as_deref().unwrap_or("absent")))
            .collect();
        let (Self { source, error, .. }, reads) = (self, reads.join(", "));
        match error {
            Some(error) => format!("the condition {source} could not be evaluated: {error} ({reads})"),
            None => format!("the condition {source} is {} ({reads})", self.holds),
        }
    }
}

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::default().with_optional_support(false).with_stdlib();
    // The standard macros stay out, so that comprehensions never expand; this is the one that is safe.
    let has = Macro::global("has", 1, |helper, _, args| match args.first().map(|arg| (arg.id, arg.expr.clone())) {
        Some((_, Expr::Select(mut select))) => {
            select.test = true;
            Ok(Some(helper.next_expr(Expr::Select(select))))
        }
        Some((id, _)) => Err(helper.new_error(id, "has() needs a claim: has(claims.NAME)")),
        None => Ok(None),
    });
    // Fails only where a macro of that name is there already; then the checker refuses every `has`.
    let _ = env.add_macro(has);
    Arc::new(env)
});

impl Condition {
    /// Compiles a condition for tokens of one profile; on an error, with its place in the source
    /// (in characters) where it is known.
    ///
    /// # Errors
    /// See [`ConditionError`].
    pub fn compile(source: &str, profile: &Arc<Profile>) -> Result<Self, (ConditionError, Option<usize>)> {
        if source.len() > MAX_CONDITION_BYTES {
            return Err((ConditionError::TooLarge, None));
        }
        // What cannot nest cannot go deep: most conditions need no stack of their own.
        if source.len() <= SHORT && source.bytes().filter(u8::is_ascii_punctuation).count() <= FEW {
            return compile_here(source, profile);
        }
        let build = || compile_here(source, profile);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn_scoped(scope, build);
            match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(compiled)) => compiled,
                // No thread to be had, or a parser that panicked: no condition.
                Ok(Err(_)) | Err(_) => Err((ConditionError::Syntax("it could not be read".to_owned()), None)),
            }
        })
    }

    /// The condition as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The claims that it reads.
    pub fn reads(&self) -> impl Iterator<Item = &str> {
        self.reads.iter().map(|read| &*read.claim)
    }

    /// The matchers that it amounts to, where it is a conjunction of comparisons with listed values.
    pub(crate) fn conjuncts(&self) -> Option<&[Check]> {
        self.conjuncts.as_deref()
    }

    /// Whether it may hold where this is known, whatever the other claims are.
    pub(crate) fn may_hold(&self, known: &Known) -> bool {
        partial::may_hold(self.program.expression(), known)
    }

    /// The texts that are written out in it.
    pub(crate) fn texts(&self) -> Vec<&str> {
        let mut texts = Vec::new();
        meaning::each_text(self.program.expression(), &mut |text| texts.push(text));
        texts
    }

    /// Whether a part of it that has to hold is the same whatever the token says.
    pub(crate) fn is_idle(&self) -> bool {
        meaning::is_idle(self.program.expression())
    }

    /// Whether it says what something is not.
    pub(crate) fn negates(&self) -> bool {
        let mut negates = false;
        meaning::each_call(self.program.expression(), &mut |call| {
            negates |= [op::LOGICAL_NOT, op::NOT_EQUALS].contains(&call.func_name.as_str());
        });
        negates
    }

    /// Its calls that look at a part of a claim: the function, the claim, and which part where it is written out.
    pub(crate) fn parts(&self) -> Vec<(&str, Option<&str>, Option<&str>)> {
        let mut parts = Vec::new();
        meaning::each_call(self.program.expression(), &mut |call| {
            if ["startsWith", "endsWith", "contains"].contains(&call.func_name.as_str()) {
                let claim = call.target.as_deref().and_then(claim_name);
                parts.push((call.func_name.as_str(), claim, call.args.first().and_then(literal_text)));
            }
        });
        parts
    }

    /// Evaluates it.
    ///
    /// # Errors
    /// Why it has no value: an absent claim, or one of an unknown form. The message holds no value.
    pub(crate) fn evaluate(&self, claims: &Claims) -> Result<bool, String> {
        let mut map = HashMap::with_capacity(self.reads.len());
        for read in &self.reads {
            match claims.held(&read.slot) {
                Held::Absent => {}
                Held::Unusable => return Err(format!("`{}` is of an unknown form", read.claim)),
                Held::Is(value) => drop(map.insert(read.key.clone(), cel_value(value))),
            }
        }
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.add_variable_from_value("claims", cel::Value::Map(Map { map: Arc::new(map) }));
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(holds)) => Ok(holds),
            _ => Err("a claim that it needs is absent".to_owned()),
        }
    }

    pub(crate) fn trace(&self, claims: &Claims) -> ConditionTrace {
        let outcome = self.evaluate(claims);
        let got = |read: &Read| {
            let text = claims.held(&read.slot).value().map(|value| value.to_string());
            let recorded = claims.profile().is_recorded(&read.claim);
            (read.claim.to_string(), text.map(|text| if recorded { text } else { "(not recorded)".to_owned() }))
        };
        ConditionTrace {
            source: self.source.to_string(),
            reads: self.reads.iter().map(got).collect(),
            holds: outcome == Ok(true),
            error: outcome.err(),
        }
    }
}

fn cel_value(value: &Value) -> cel::Value {
    let text = |text: &str| cel::Value::String(Arc::new(text.to_owned()));
    match value {
        Value::Text(value) => text(value),
        Value::Int(number) => cel::Value::Int(*number),
        Value::Bool(yes) => cel::Value::Bool(*yes),
        Value::List(items) => cel::Value::List(Arc::new(items.iter().map(|item| text(item)).collect())),
        // The checker lets only has() near it.
        Value::Json(_) => cel::Value::Null,
    }
}

fn compile_here(source: &str, profile: &Arc<Profile>) -> Result<Condition, (ConditionError, Option<usize>)> {
    let program = ENVIRONMENT.compile(source).map_err(|errors| {
        let first = errors.errors.first();
        let message = first.map_or("it is incomplete", |error| error.msg.as_str());
        let position = first.filter(|error| error.pos.0 == 1).and_then(|error| usize::try_from(error.pos.1 - 1).ok());
        (ConditionError::Syntax(message.to_owned()), position)
    })?;
    let mut checker = Checker { profile, reads: Vec::new(), nodes: 0 };
    let checked = checker.bool(program.expression(), 0);
    if let Err((error, id)) = checked {
        let at = program.source_info().offset_for(id).map(|(start, _)| start as usize);
        return Err((error, at));
    }
    if checker.reads.is_empty() {
        return Err((ConditionError::NoClaim, None));
    }
    let mut conjuncts = Some(Vec::new());
    collect_conjuncts(program.expression(), profile, &mut conjuncts);
    let reads = checker.reads.iter().filter_map(|claim| {
        let key = Key::String(Arc::new(claim.clone()));
        Some(Read { claim: claim.as_str().into(), slot: profile.slot(claim)?, key })
    });
    Ok(Condition { source: source.into(), reads: reads.collect(), conjuncts, program })
}

/// What an expression is, as far as the checker distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Int,
    Bool,
    TextList,
    IntList,
    Json,
}

impl Type {
    fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "a number",
            Self::Bool => "true or false",
            Self::TextList => "a list of texts",
            Self::IntList => "a list of numbers",
            Self::Json => "an object",
        }
    }
}

type Checked<T> = Result<T, (ConditionError, u64)>;

struct Checker<'a> {
    profile: &'a Profile,
    reads: Vec<String>,
    nodes: usize,
}

impl Checker<'_> {
    fn bool(&mut self, expr: &IdedExpr, depth: usize) -> Checked<()> {
        match self.type_of(expr, depth)? {
            Type::Bool => Ok(()),
            other => Err((ConditionError::NotBool(other.words().to_owned()), expr.id)),
        }
    }

    fn type_of(&mut self, expr: &IdedExpr, depth: usize) -> Checked<Type> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err((ConditionError::TooLarge, expr.id));
        }
        if let Some(claim) = claim_name(expr) {
            let kind = self.read(claim, expr.id)?;
            return Ok(match kind {
                Kind::Text => Type::Text,
                Kind::Int => Type::Int,
                Kind::Bool => Type::Bool,
                Kind::List => Type::TextList,
                Kind::Json => Type::Json,
            });
        }
        match &expr.expr {
            Expr::Literal(LiteralValue::String(_)) => Ok(Type::Text),
            Expr::Literal(LiteralValue::Int(_)) => Ok(Type::Int),
            Expr::Literal(LiteralValue::Boolean(_)) => Ok(Type::Bool),
            Expr::Literal(_) => Err((ConditionError::Function("this kind of literal".to_owned()), expr.id)),
            Expr::List(list) if list.optional_indices.is_empty() => {
                let types = list.elements.iter().map(|item| self.type_of(item, depth + 1));
                let types = types.collect::<Checked<Vec<_>>>()?;
                match types.split_first() {
                    Some((Type::Text, rest)) if rest.iter().all(|t| *t == Type::Text) => Ok(Type::TextList),
                    Some((Type::Int, rest)) if rest.iter().all(|t| *t == Type::Int) => Ok(Type::IntList),
                    _ => Err((ConditionError::Function("a list of anything but texts or numbers".to_owned()), expr.id)),
                }
            }
            Expr::Select(select) if select.test => match &select.operand.expr {
                Expr::Ident(name) if name == "claims" => {
                    self.read(&select.field, expr.id)?;
                    Ok(Type::Bool)
                }
                _ => Err((ConditionError::Variable("has() of anything but a claim".to_owned()), expr.id)),
            },
            Expr::Select(select) => Err((ConditionError::Variable(format!(".{}", select.field)), expr.id)),
            Expr::Ident(name) => Err((ConditionError::Variable(name.clone()), expr.id)),
            Expr::Call(call) => self.call(call, expr.id, depth),
            Expr::List(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Comprehension(_) | Expr::Unspecified => {
                Err((ConditionError::Function("this kind of expression".to_owned()), expr.id))
            }
        }
    }

    fn read(&mut self, claim: &str, id: u64) -> Checked<Kind> {
        let Some(known) = self.profile.claim(claim) else {
            let names = self.profile.claims().map(|claim| &*claim.name);
            let nearest = did_you_mean(claim, names).map(str::to_owned);
            let (claim, profile) = (claim.to_owned(), self.profile.title().to_owned());
            return Err((ConditionError::UnknownClaim { claim, profile, nearest }, id));
        };
        if !self.reads.iter().any(|read| read == claim) {
            self.reads.push(claim.to_owned());
        }
        Ok(known.kind)
    }

    fn call(&mut self, call: &CallExpr, id: u64, depth: usize) -> Checked<Type> {
        let operands = call.target.as_deref().into_iter().chain(&call.args);
        let types = operands.map(|operand| self.type_of(operand, depth + 1)).collect::<Checked<Vec<_>>>()?;
        let member = call.target.is_some();
        let wrong = || {
            let words = |n: usize| types.get(n).map_or("nothing", |t: &Type| t.words()).to_owned();
            let operator = call.func_name.trim_matches(['_', '@']).to_owned();
            let (left, right) = (words(0), words(1));
            Err((ConditionError::Types { operator, left, right }, id))
        };
        match (call.func_name.as_str(), member, types.as_slice()) {
            (op::LOGICAL_AND | op::LOGICAL_OR, false, [Type::Bool, Type::Bool]) => Ok(Type::Bool),
            (op::LOGICAL_NOT, false, [Type::Bool]) => Ok(Type::Bool),
            (op::CONDITIONAL, false, [Type::Bool, yes, no]) if yes == no => Ok(*yes),
            (op::EQUALS | op::NOT_EQUALS, false, [left, right]) if left == right && *left != Type::Json => {
                Ok(Type::Bool)
            }
            (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, false, [Type::Int, Type::Int]) => {
                Ok(Type::Bool)
            }
            (op::IN, false, [Type::Text, Type::TextList] | [Type::Int, Type::IntList]) => Ok(Type::Bool),
            ("size", _, [Type::Text | Type::TextList]) => Ok(Type::Int),
            ("startsWith" | "endsWith" | "contains", true, [Type::Text, Type::Text]) => Ok(Type::Bool),
            (
                op::LOGICAL_AND
                | op::LOGICAL_OR
                | op::LOGICAL_NOT
                | op::CONDITIONAL
                | op::EQUALS
                | op::NOT_EQUALS
                | op::LESS
                | op::LESS_EQUALS
                | op::GREATER
                | op::GREATER_EQUALS
                | op::IN
                | "size"
                | "startsWith"
                | "endsWith"
                | "contains",
                ..,
            ) => wrong(),
            (name, ..) => Err((ConditionError::Function(name.trim_matches('_').to_owned()), id)),
        }
    }
}

/// The claim that an expression reads: `claims.NAME` or `claims["NAME"]`.
fn claim_name(expr: &IdedExpr) -> Option<&str> {
    let is_claims = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if name == "claims");
    match &expr.expr {
        Expr::Select(select) if !select.test && is_claims(&select.operand) => Some(&select.field),
        Expr::Call(call) if call.func_name == op::INDEX => match call.args.as_slice() {
            [operand, index] if is_claims(operand) => literal_text(index),
            _ => None,
        },
        _ => None,
    }
}

fn literal_text(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn literal(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Literal(LiteralValue::Int(number)) => Some(number.inner().to_string()),
        Expr::Literal(LiteralValue::Boolean(yes)) => Some(yes.inner().to_string()),
        _ => literal_text(expr).map(str::to_owned),
    }
}

/// Adds what `expr` amounts to as matchers; `None` where it amounts to no conjunction of them.
fn collect_conjuncts(expr: &IdedExpr, profile: &Profile, found: &mut Option<Vec<Check>>) {
    let Expr::Call(call) = &expr.expr else { return *found = None };
    let comparison = match (call.func_name.as_str(), call.args.as_slice()) {
        (op::LOGICAL_AND, [left, right]) => {
            collect_conjuncts(left, profile, found);
            return collect_conjuncts(right, profile, found);
        }
        (op::EQUALS, [left, right]) => match (claim_name(left), claim_name(right)) {
            (Some(claim), None) => literal(right).map(|value| (claim, vec![value])),
            (None, Some(claim)) => literal(left).map(|value| (claim, vec![value])),
            _ => None,
        },
        (op::IN, [left, right]) => match (claim_name(left), &right.expr) {
            (Some(claim), Expr::List(list)) => {
                list.elements.iter().map(literal).collect::<Option<Vec<_>>>().map(|values| (claim, values))
            }
            _ => None,
        },
        _ => None,
    };
    let check = comparison.and_then(|(name, values)| {
        let (claim, slot) = (profile.claim(name)?, profile.slot(name)?);
        let matcher = Matcher::any_of(claim, &values, Vec::new()).ok()?;
        Some(Check { claim: name.into(), slot, matcher })
    });
    match (check, found.as_mut()) {
        (Some(check), Some(found)) => found.push(check),
        _ => *found = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(name: &str) -> Arc<Profile> {
        Profile::named(name).expect("a profile")
    }

    #[test]
    fn conditions_are_checked_when_they_are_loaded() {
        for (source, expected) in [
            (r#"claims.run_attempt == "1""#, None),
            (r#"claims["run_attempt"] == "1" && claims.ref.startsWith("refs/heads/")"#, None),
            (r#"claims.event_name in ["push", "schedule"] || !has(claims.environment)"#, None),
            (r#"size(claims.ref) < 40 ? claims.actor_id == "1" : false"#, None),
            ("claims.run_attempt == 1", Some("`==` cannot take text and a number")),
            ("claims.run_attempt < 3", Some("`<` cannot take text and a number")),
            (
                r#"claims.run_atempt == "1""#,
                Some("GitHub Actions tokens have no claim `run_atempt`; did you mean `run_attempt`?"),
            ),
            (
                r#"has(claims.enviroment)"#,
                Some("GitHub Actions tokens have no claim `enviroment`; did you mean `environment`?"),
            ),
            ("claims.run_attempt", Some("the condition is text, not true or false")),
            ("true", Some("the condition reads no claim")),
            (r#"claims.ref.matches("a+")"#, Some("`matches` is not available in conditions")),
            (r#"claims.ref + "x" == "y""#, Some("`+` is not available in conditions")),
            (r#"["a"].all(x, x == "a")"#, Some("there is no `x` in conditions")),
            (r#"claims.ref.lowerAscii() == "x""#, Some("`lowerAscii` is not available in conditions")),
            (r#"claims[claims.ref] == "x""#, Some("there is no `claims` in conditions")),
            (r#"request.time == "x""#, Some("there is no `.time` in conditions")),
            (r#"claims.ref == null"#, Some("`this kind of literal` is not available in conditions")),
            (
                r#"claims.ref in ["a", 1]"#,
                Some("`a list of anything but texts or numbers` is not available in conditions"),
            ),
            (r#"claims.ref in "abc""#, Some("`in` cannot take text and text")),
            (r#"{"a": claims.ref}.a == "x""#, Some("there is no `.a` in conditions")),
        ] {
            let error = Condition::compile(source, &profile("github")).err().map(|(error, _)| error.to_string());
            assert_eq!(error.as_deref(), expected, "{source}");
        }
        let number = Condition::compile("claims.runner_id == 7 && claims.runner_id in [7, 8]", &profile("gitlab"));
        assert!(number.is_ok());
        let text = Condition::compile(r#"claims.runner_id == "7""#, &profile("gitlab"));
        assert!(matches!(text, Err((ConditionError::Types { .. }, _))));
    }

    #[test]
    fn bombs_are_refused_quickly() {
        for bomb in [
            "!".repeat(4000) + "true",
            "(".repeat(2000) + "claims.ref == \"x\"" + &")".repeat(2000),
            vec!["claims.ref == \"x\""; 200].join(" && "),
            "[".repeat(2000) + &"]".repeat(2000),
            "-".repeat(4000) + "1 == 1",
            "a.".repeat(2000) + "b",
            "x".repeat(5000),
            "claims.ref == \"x\" ? ".repeat(190),
        ] {
            let started = std::time::Instant::now();
            assert!(Condition::compile(&bomb, &profile("github")).is_err());
            assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
        }
    }
}
