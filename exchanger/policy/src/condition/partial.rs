//! What a condition may come to where only some of the claims are known.

use super::{claim_name, literal_text};
use crate::claims::{Held, Value};
use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators as op};
use std::collections::HashMap;

/// What is known of claims, by name. Nothing is known of the others.
pub(crate) type Known = HashMap<String, Held>;

/// What a true-or-false expression may come to: any of these bits.
type Outcomes = u8;
const YES: Outcomes = 1;
const NO: Outcomes = 2;
const ERROR: Outcomes = 4;

/// What another expression may come to, errors left out; `None`: anything.
type Values = Option<Vec<Value>>;

/// Whether the expression may be true. An error is not.
pub(super) fn may_hold(expr: &IdedExpr, known: &Known) -> bool {
    outcomes(expr, known) & YES != 0
}

fn outcomes(expr: &IdedExpr, known: &Known) -> Outcomes {
    truths(expr, known).unwrap_or(YES | NO | ERROR)
}

/// `None`: it may come to something else than true or false.
fn truths(expr: &IdedExpr, known: &Known) -> Option<Outcomes> {
    let truth = |yes: bool| if yes { YES } else { NO };
    if let Some(claim) = claim_name(expr) {
        return match known.get(claim) {
            None => None,
            Some(Held::Is(Value::Bool(yes))) => Some(truth(*yes)),
            Some(_) => Some(ERROR),
        };
    }
    let call = match &expr.expr {
        Expr::Literal(LiteralValue::Boolean(yes)) => return Some(truth(*yes.inner())),
        Expr::Select(select) if select.test => {
            return Some(known.get(&select.field).map_or(YES | NO, |held| truth(*held != Held::Absent)));
        }
        Expr::Call(call) => call,
        _ => return None,
    };
    let of = |expr| outcomes(expr, known);
    Some(match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
        (op::LOGICAL_NOT, _, [negated]) => swapped(of(negated)),
        (op::LOGICAL_AND, _, [left, right]) => both(of(left), of(right)),
        (op::LOGICAL_OR, _, [left, right]) => swapped(both(swapped(of(left)), swapped(of(right)))),
        (op::CONDITIONAL, _, [asked, yes, no]) => branches(of(asked), || of(yes), || of(no)),
        (op::EQUALS, _, [left, right]) => compared(left, right, known, |a, b| a == b),
        (op::NOT_EQUALS, _, [left, right]) => compared(left, right, known, |a, b| a != b),
        (op::LESS, _, [left, right]) => compared(left, right, known, |a, b| number(a) < number(b)),
        (op::LESS_EQUALS, _, [left, right]) => compared(left, right, known, |a, b| number(a) <= number(b)),
        (op::GREATER, _, [left, right]) => compared(left, right, known, |a, b| number(a) > number(b)),
        (op::GREATER_EQUALS, _, [left, right]) => compared(left, right, known, |a, b| number(a) >= number(b)),
        (op::IN, _, [item, list]) => match &list.expr {
            // The whole list comes first: an element that is an error makes all of it one.
            Expr::List(list) => {
                let found = |element| compared(item, element, known, |a, b| a == b);
                list.elements.iter().map(found).fold(NO, either)
            }
            _ => compared(item, list, known, |item, list| match (item, list) {
                (Value::Text(item), Value::List(list)) => list.iter().any(|one| **one == **item),
                _ => false,
            }),
        },
        ("startsWith", Some(text), [part]) => compared_texts(text, part, known, |text, part| text.starts_with(part)),
        ("endsWith", Some(text), [part]) => compared_texts(text, part, known, |text, part| text.ends_with(part)),
        ("contains", Some(text), [part]) => compared_texts(text, part, known, |text, part| text.contains(part)),
        _ => return None,
    })
}

fn swapped(outcomes: Outcomes) -> Outcomes {
    (outcomes & ERROR) | ((outcomes & YES) << 1) | ((outcomes & NO) >> 1)
}

/// `&&`: a no settles it, whatever the other side is.
fn both(left: Outcomes, right: Outcomes) -> Outcomes {
    let can = |outcome: Outcomes| (left | right) & outcome;
    let yes = left & right & YES;
    let error =
        if (left & ERROR != 0 && right & (YES | ERROR) != 0) || (right & ERROR != 0 && left & (YES | ERROR) != 0) {
            ERROR
        } else {
            0
        };
    yes | can(NO) | error
}

/// One of the two, where neither may be an error.
fn either(left: Outcomes, right: Outcomes) -> Outcomes {
    let one = |yes: Outcomes, other: Outcomes| if other & (YES | NO) != 0 { yes & YES } else { 0 };
    one(left, right) | one(right, left) | (left & right & NO) | ((left | right) & ERROR)
}

fn branches(asked: Outcomes, yes: impl Fn() -> Outcomes, no: impl Fn() -> Outcomes) -> Outcomes {
    let taken = |bit: Outcomes, branch: &dyn Fn() -> Outcomes| if asked & bit != 0 { branch() } else { 0 };
    (asked & ERROR) | taken(YES, &yes) | taken(NO, &no)
}

fn compared(left: &IdedExpr, right: &IdedExpr, known: &Known, holds: fn(&Value, &Value) -> bool) -> Outcomes {
    let (Some(left), Some(right)) = (values(left, known), values(right, known)) else { return YES | NO | ERROR };
    let outcome = |(a, b)| if holds(a, b) { YES } else { NO };
    let pairs = left.iter().flat_map(|a| right.iter().map(move |b| (a, b)));
    // No value on one side: it is an error.
    pairs.map(outcome).reduce(|one, other| one | other).unwrap_or(ERROR)
}

fn compared_texts(text: &IdedExpr, part: &IdedExpr, known: &Known, holds: fn(&str, &str) -> bool) -> Outcomes {
    let (Some(texts), Some(parts)) = (values(text, known), values(part, known)) else { return YES | NO | ERROR };
    let outcome = |(text, part): (&Value, &Value)| match (text, part) {
        (Value::Text(text), Value::Text(part)) if holds(text, part) => YES,
        _ => NO,
    };
    let pairs = texts.iter().flat_map(|text| parts.iter().map(move |part| (text, part)));
    pairs.map(outcome).reduce(|one, other| one | other).unwrap_or(ERROR)
}

fn values(expr: &IdedExpr, known: &Known) -> Values {
    if let Some(claim) = claim_name(expr) {
        return known.get(claim).map(|held| held.value().cloned().into_iter().collect());
    }
    if let Some(text) = literal_text(expr) {
        return Some(vec![Value::Text(text.into())]);
    }
    match &expr.expr {
        Expr::Literal(LiteralValue::Int(number)) => Some(vec![Value::Int(*number.inner())]),
        Expr::Call(call) => match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            ("size", Some(of), []) | ("size", None, [of]) => {
                let size = |value: &Value| match value {
                    Value::Text(text) => text.chars().count(),
                    Value::List(items) => items.len(),
                    _ => 0,
                };
                let sizes = values(of, known)?;
                Some(sizes.iter().filter_map(|value| i64::try_from(size(value)).ok().map(Value::Int)).collect())
            }
            (op::CONDITIONAL, _, [asked, yes, no]) => {
                let asked = outcomes(asked, known);
                let mut found = Vec::new();
                for (bit, branch) in [(YES, yes), (NO, no)] {
                    if asked & bit != 0 {
                        found.extend(values(branch, known)?);
                    }
                }
                Some(found)
            }
            _ => truth_values(expr, known),
        },
        _ => truth_values(expr, known),
    }
}

fn truth_values(expr: &IdedExpr, known: &Known) -> Values {
    let outcomes = truths(expr, known)?;
    let may_be = |(bit, yes)| (outcomes & bit != 0).then_some(Value::Bool(yes));
    Some([(YES, true), (NO, false)].into_iter().filter_map(may_be).collect())
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{claims::Claims, condition::Condition, fixtures::FIXTURES, issuer::Profile};
    use proptest::prelude::*;

    #[test]
    fn what_may_hold_of_what_is_known() {
        let text = |text: &str| Held::Is(Value::Text(text.into()));
        for (source, claim, held, expected) in [
            (r#"claims.ref == "a""#, "ref", text("a"), true),
            (r#"claims.ref == "a""#, "ref", text("b"), false),
            (r#"claims.ref == "a""#, "ref", Held::Absent, false),
            (r#"claims.ref == "a""#, "actor", text("b"), true),
            (r#"!(claims.ref == "a")"#, "ref", text("b"), true),
            (r#"!(claims.ref == "a")"#, "ref", Held::Absent, false),
            (r#"claims.ref == "a" || claims.actor == "b""#, "ref", text("b"), true),
            (r#"claims.ref == "a" && claims.actor == "b""#, "ref", text("b"), false),
            (r#"claims.ref == "a" || claims.ref == "b" && claims.actor == "c""#, "ref", text("b"), true),
            (r#"claims.ref in ["a", "b"]"#, "ref", text("c"), false),
            (r#"claims.ref in ["a", claims.ref]"#, "ref", text("c"), true),
            (r#"claims.ref in ["a", claims.actor]"#, "ref", text("c"), true),
            (r#""a" in ["a", claims.ref]"#, "ref", text("c"), true),
            (r#""a" in ["a", claims.ref]"#, "ref", Held::Absent, false),
            (r#""a" in ["b", claims.ref]"#, "ref", text("c"), false),
            (r#"claims.ref == (claims.actor == "b" ? claims.ref : "a")"#, "ref", text("c"), true),
            (r#"claims.ref == (claims.actor == "b" ? "b" : "a")"#, "ref", text("c"), false),
            (r#"claims.ref == "a" ? claims.actor == "b" : claims.ref == "c""#, "ref", text("d"), false),
            (r#"has(claims.environment)"#, "environment", Held::Absent, false),
            (r#"!has(claims.environment)"#, "environment", Held::Absent, true),
            (r#"!has(claims.environment) || claims.environment == "a""#, "environment", text("b"), false),
            (r#"claims.ref.startsWith("refs/")"#, "ref", text("refs/x"), true),
            (r#"claims.ref.startsWith("refs/")"#, "ref", text("x"), false),
            (r#"claims.ref.endsWith("x") && claims.ref.contains("/")"#, "ref", text("x"), false),
            (r#"size(claims.ref) > 3"#, "ref", text("abc"), false),
            (r#"size(claims.ref) > 3"#, "ref", text("abcd"), true),
            (r#"(claims.ref == "a") == true"#, "ref", text("b"), false),
            (r#"size(["x"]) == 1 && claims.ref == "a""#, "ref", text("a"), true),
            (r#"size(["x"]) == 1 && claims.ref == "a""#, "ref", text("b"), false),
            (r#"claims.ref in (claims.actor == "b" ? ["a"] : ["c"])"#, "ref", text("c"), true),
            (r#"[claims.ref] == ["a"]"#, "ref", text("a"), true),
        ] {
            let condition = Condition::compile(source, &Profile::named("github").expect("a profile")).expect(source);
            let known = Known::from([(claim.to_owned(), held.clone())]);
            assert_eq!(condition.may_hold(&known), expected, "{source} with {claim} {held:?}");
        }
    }

    /// Conditions over claims that the fixtures have, lack, and share.
    fn conditions() -> impl Strategy<Value = String> {
        let claim = || prop::sample::select(vec!["ref", "actor", "environment", "event_name", "repository_id"]);
        let text = || prop::sample::select(vec!["refs/heads/main", "push", "production", "octocat", "refs/", "x", ""]);
        let leaf = prop_oneof![
            (claim(), text()).prop_map(|(claim, text)| format!("claims.{claim} == {text:?}")),
            (claim(), text()).prop_map(|(claim, text)| format!("claims.{claim} != {text:?}")),
            (claim(), claim()).prop_map(|(one, other)| format!("claims.{one} == claims.{other}")),
            (claim(), text(), claim()).prop_map(|(a, text, b)| format!("claims.{a} in [{text:?}, claims.{b}]")),
            (claim(), text()).prop_map(|(claim, text)| format!("claims.{claim}.startsWith({text:?})")),
            claim().prop_map(|claim| format!("has(claims.{claim})")),
            (claim(), 0..20).prop_map(|(claim, size)| format!("size(claims.{claim}) > {size}")),
            (claim(), claim(), text())
                .prop_map(|(a, b, t)| format!("claims.{a} == (has(claims.{b}) ? {t:?} : claims.{a})")),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|a| format!("!({a})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) == ({b})")),
                (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a}) ? ({b}) : ({c})")),
            ]
        })
    }

    /// What lists come to is not followed: it may be anything.
    fn conditions_on_lists() -> impl Strategy<Value = String> {
        let claim = || prop::sample::select(vec!["ref", "event_name", "environment"]);
        let list = || prop::sample::select(vec!["[]", r#"["push"]"#, r#"["x", claims.ref]"#, "[claims.environment]"]);
        let leaf = prop_oneof![
            (list(), 0..3).prop_map(|(list, size)| format!("size({list}) == {size}")),
            (list(), list()).prop_map(|(one, other)| format!("{one} == {other}")),
            (claim(), claim(), list(), list())
                .prop_map(|(a, b, one, other)| format!("claims.{a} in (has(claims.{b}) ? {one} : {other})")),
            (claim(), list()).prop_map(|(claim, list)| format!("(claims.{claim} in {list}) != true")),
        ];
        (leaf, conditions()).prop_flat_map(|(list, other)| {
            let (list, other) = (format!("({list})"), format!("({other})"));
            prop_oneof![
                Just(list.clone()),
                Just(format!("!{list}")),
                Just(format!("{list} && {other}")),
                Just(format!("{list} ? {other} : !{other}")),
                Just(format!("{other} == {list}")),
            ]
        })
    }

    /// Whatever is known of a job for which it holds, it may hold. Where all is known, it may hold only if it does,
    /// but for what is not followed.
    fn check(source: &str, known: &[bool], is_followed: bool) -> Result<(), TestCaseError> {
        let profile = Profile::named("github").expect("a profile");
        let Ok(condition) = Condition::compile(source, &profile) else { return Ok(()) };
        for (name, payload) in FIXTURES.iter().filter(|(name, _)| name.starts_with("github/")) {
            let claims = Claims::parse(&profile, payload.as_bytes()).expect("claims");
            let held = |claim: &str| claims.get(claim).map_or(Held::Absent, |value| Held::Is(value.clone()));
            let reads = || condition.reads().map(|claim| (claim.to_owned(), held(claim)));
            let holds = condition.evaluate(&claims) == Ok(true);
            if is_followed {
                prop_assert_eq!(condition.may_hold(&reads().collect()), holds, "{} of {}", source, name);
            }
            let some: Known = reads().zip(known).filter(|(_, known)| **known).map(|(claim, _)| claim).collect();
            prop_assert!(!holds || condition.may_hold(&some), "{} of {}: {:?}", source, name, some);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn what_holds_may_hold(source in conditions(), known in prop::collection::vec(any::<bool>(), 5)) {
            check(&source, &known, true)?;
        }

        #[test]
        fn what_holds_of_lists_may_hold(
            source in conditions_on_lists(), known in prop::collection::vec(any::<bool>(), 8)
        ) {
            check(&source, &known, false)?;
        }
    }
}
