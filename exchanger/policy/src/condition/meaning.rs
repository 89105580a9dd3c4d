//! What a condition comes to, as its tree shows: for the linter, which asks what a person overlooked.

use super::{claim_name, literal, literal_text};
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators as op};
use std::collections::BTreeSet;

/// Claims that are said what they are.
type Claims<'e> = BTreeSet<&'e str>;

/// The claims that are said what they are whenever the expression is `truth`: in each of its alternatives,
/// and more than that a claim is there or is not something. `None`: it never is `truth`.
pub(super) fn bound(expr: &IdedExpr, truth: bool) -> Option<Claims<'_>> {
    if let Some(claim) = claim_name(expr) {
        return Some(Claims::from([claim]));
    }
    let call = match &expr.expr {
        Expr::Literal(LiteralValue::Boolean(value)) => return (*value.inner() == truth).then(Claims::new),
        Expr::Call(call) => call,
        _ => return Some(Claims::new()),
    };
    match (call.func_name.as_str(), call.args.as_slice()) {
        (op::LOGICAL_NOT, [negated]) => bound(negated, !truth),
        (op::LOGICAL_AND, [left, right]) if truth => both(bound(left, true), bound(right, true)),
        (op::LOGICAL_OR, [left, right]) if !truth => both(bound(left, false), bound(right, false)),
        (op::LOGICAL_AND | op::LOGICAL_OR, [left, right]) => either(bound(left, truth), bound(right, truth)),
        (op::CONDITIONAL, [asked, yes, no]) => {
            either(both(bound(asked, true), bound(yes, truth)), both(bound(asked, false), bound(no, truth)))
        }
        (op::EQUALS, [left, right]) => Some(compared(left, right, truth)),
        (op::NOT_EQUALS, [left, right]) => Some(compared(left, right, !truth)),
        (op::IN, [left, right]) if truth => {
            let listed = matches!(right.expr, Expr::List(_)).then(|| claim_name(left)).flatten();
            Some(listed.or_else(|| literal(left).and_then(|_| claim_name(right))).into_iter().collect())
        }
        ("startsWith" | "endsWith" | "contains", _) if truth && !is_about_nothing(call) => {
            Some(call.target.iter().filter_map(|target| claim_name(target)).collect())
        }
        _ => Some(Claims::new()),
    }
}

/// What is not one of two things is the other one, and what is not a text may be any other.
fn compared<'e>(left: &'e IdedExpr, right: &'e IdedExpr, equal: bool) -> Claims<'e> {
    let is_truth = |expr: &IdedExpr| matches!(&expr.expr, Expr::Literal(LiteralValue::Boolean(_)));
    match (claim_name(left), claim_name(right)) {
        (Some(claim), None) if equal || is_truth(right) => Claims::from([claim]),
        (None, Some(claim)) if equal || is_truth(left) => Claims::from([claim]),
        _ => Claims::new(),
    }
}

fn both<'e>(left: Option<Claims<'e>>, right: Option<Claims<'e>>) -> Option<Claims<'e>> {
    Some(left?.union(&right?).copied().collect())
}

fn either<'e>(left: Option<Claims<'e>>, right: Option<Claims<'e>>) -> Option<Claims<'e>> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.intersection(&right).copied().collect()),
        (left, right) => left.or(right),
    }
}

/// Whether a call asks for what any value has, or any ref.
fn is_about_nothing(call: &CallExpr) -> bool {
    let Some(text) = call.args.first().and_then(literal_text) else { return true };
    match call.func_name.as_str() {
        "startsWith" => ["refs/heads/", "refs/tags/"].iter().any(|any| any.starts_with(text)),
        _ => text.len() < 2,
    }
}

/// Whether a part of the condition that has to hold is the same whatever the token says.
pub(super) fn is_idle(expr: &IdedExpr) -> bool {
    operands(expr, op::LOGICAL_AND).into_iter().any(|part| constant(part).is_some()) || constant(expr).is_some()
}

/// What an expression is whatever the token says.
fn constant(expr: &IdedExpr) -> Option<bool> {
    let call = match &expr.expr {
        Expr::Literal(LiteralValue::Boolean(value)) => return Some(*value.inner()),
        Expr::Call(call) => call,
        _ => return None,
    };
    match (call.func_name.as_str(), call.args.as_slice()) {
        (op::LOGICAL_NOT, [negated]) => constant(negated).map(|value| !value),
        // `a || !a` and `a != "x" || a != "y"` always hold; `a && !a` and `a == "x" && a == "y"` never do.
        (operator @ (op::LOGICAL_OR | op::LOGICAL_AND), _) => {
            let (ends, parts) = (operator == op::LOGICAL_OR, operands(expr, operator));
            let settles = parts.iter().any(|part| constant(part) == Some(ends));
            let exclude = |(at, one): (usize, &&IdedExpr)| {
                parts.iter().skip(at + 1).any(|other| are_opposed(one, other) || exhaust(one, other, ends))
            };
            if settles || parts.iter().enumerate().any(exclude) {
                return Some(ends);
            }
            parts.iter().all(|part| constant(part) == Some(!ends)).then_some(!ends)
        }
        (op::CONDITIONAL, [asked, yes, no]) => match constant(asked) {
            Some(true) => constant(yes),
            Some(false) => constant(no),
            None => constant(yes).filter(|value| constant(no) == Some(*value)),
        },
        (operator @ (op::EQUALS | op::NOT_EQUALS), [left, right]) => {
            let equal = match (literal(left), literal(right)) {
                (Some(left), Some(right)) => left == right,
                _ if spelled(left) == spelled(right) => true,
                _ => return None,
            };
            Some(equal == (operator == op::EQUALS))
        }
        (operator @ (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS), [left, right]) => {
            let is_size = matches!(&left.expr, Expr::Call(call) if call.func_name == "size");
            let number: i64 = literal(right).filter(|_| is_size)?.parse().ok()?;
            match operator {
                op::LESS | op::GREATER_EQUALS => (number <= 0).then_some(operator == op::GREATER_EQUALS),
                _ => (number < 0).then_some(operator == op::GREATER),
            }
        }
        ("startsWith" | "endsWith" | "contains", [text]) => {
            literal_text(text).filter(|text| text.is_empty()).map(|_| true)
        }
        _ => None,
    }
}

/// The operands of a chain of one operator.
fn operands<'e>(expr: &'e IdedExpr, operator: &str) -> Vec<&'e IdedExpr> {
    match &expr.expr {
        Expr::Call(call) if call.func_name == operator => {
            call.args.iter().flat_map(|part| operands(part, operator)).collect()
        }
        _ => vec![expr],
    }
}

fn are_opposed(one: &IdedExpr, other: &IdedExpr) -> bool {
    let (one, other) = (spelled(one), spelled(other));
    one.strip_prefix('!') == Some(&other) || other.strip_prefix('!') == Some(&one)
}

/// Whether two comparisons of one claim with different values leave nothing over.
fn exhaust(one: &IdedExpr, other: &IdedExpr, differ: bool) -> bool {
    let of = |expr| comparison(expr, if differ { op::NOT_EQUALS } else { op::EQUALS });
    matches!((of(one), of(other)), (Some((claim, value)), Some((other, another))) if claim == other && value != another)
}

fn comparison<'e>(expr: &'e IdedExpr, operator: &str) -> Option<(&'e str, String)> {
    let Expr::Call(call) = &expr.expr else { return None };
    let [left, right] = call.args.as_slice() else { return None };
    let (claim, value) = claim_name(left).zip(literal(right)).or_else(|| claim_name(right).zip(literal(left)))?;
    (call.func_name == operator).then_some((claim, value))
}

/// An expression in one spelling: `!=` and `!` as `!`, what is compared in one order.
fn spelled(expr: &IdedExpr) -> String {
    if let Some(claim) = claim_name(expr) {
        return format!("@{claim}");
    }
    match &expr.expr {
        Expr::Call(call) => {
            let mut parts: Vec<_> = call.target.as_deref().into_iter().chain(&call.args).map(spelled).collect();
            let (mark, name) = match call.func_name.as_str() {
                op::LOGICAL_NOT => {
                    let negated = parts.pop().unwrap_or_default();
                    return negated.strip_prefix('!').map_or_else(|| format!("!{negated}"), str::to_owned);
                }
                op::NOT_EQUALS => ("!", op::EQUALS),
                name => ("", name),
            };
            if matches!(name, op::EQUALS | op::LOGICAL_AND | op::LOGICAL_OR) {
                parts.sort_unstable();
            }
            format!("{mark}{name}({})", parts.join(","))
        }
        Expr::Select(select) => format!("has({})", select.field),
        Expr::List(list) => format!("{:?}", list.elements.iter().map(spelled).collect::<Vec<_>>()),
        _ => literal(expr).map_or_else(String::new, |value| format!("{value:?}")),
    }
}

/// Calls `visit` for every call in the tree.
pub(super) fn each_call<'e>(expr: &'e IdedExpr, visit: &mut dyn FnMut(&'e CallExpr)) {
    match &expr.expr {
        Expr::Call(call) => {
            visit(call);
            call.target.as_deref().into_iter().chain(&call.args).for_each(|operand| each_call(operand, visit));
        }
        Expr::List(list) => list.elements.iter().for_each(|item| each_call(item, visit)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::{condition::Condition, issuer::Profile};

    fn condition(source: &str) -> Condition {
        Condition::compile(source, &Profile::named("github").expect("a profile")).expect(source)
    }

    #[test]
    fn what_a_condition_bounds() {
        for (source, expected) in [
            (r#"claims.ref == "a""#, Some("ref")),
            (r#""a" == claims.ref"#, Some("ref")),
            (r#"claims["ref"] in ["a", "b"]"#, Some("ref")),
            (r#"claims.ref != "a""#, Some("")),
            (r#"!(claims.ref != "a")"#, Some("ref")),
            (r#"!!(claims.ref == "a")"#, Some("ref")),
            (r#"has(claims.ref) && claims.actor == "a""#, Some("actor")),
            (r#"claims.ref == "a" || claims.actor == "b""#, Some("")),
            (r#"(claims.ref == "a" || claims.ref == "b") && claims.actor == "c""#, Some("actor ref")),
            (r#"claims.ref == "a" && claims.actor == "b" || claims.ref == "c" && claims.actor != "d""#, Some("ref")),
            (r#"!(claims.ref == "a" || claims.actor != "b")"#, Some("actor")),
            (r#"claims.ref == "a" ? claims.actor == "b" : claims.ref == "c""#, Some("ref")),
            (r#"claims.ref == "a" ? true : true"#, Some("")),
            (r#"claims.actor_id == claims.repository_owner_id"#, Some("")),
            (r#"claims.ref.startsWith("refs/heads/release/")"#, Some("ref")),
            (r#"claims.ref.startsWith("refs/heads/")"#, Some("")),
            (r#"claims.ref.startsWith("refs/hea")"#, Some("")),
            (r#"claims.ref.endsWith("")"#, Some("")),
            (r#"claims.ref.startsWith(claims.ref)"#, Some("")),
            (r#"size(claims.ref) > 3"#, Some("")),
            (r#"claims.ref == "||" && claims.actor == "!=""#, Some("actor ref")),
            (r#"claims.ref == "a" && false"#, None),
        ] {
            let found = condition(source);
            let found = found.bound().map(|claims| claims.into_iter().collect::<Vec<_>>().join(" "));
            assert_eq!(found.as_deref(), expected, "{source}");
        }
    }

    #[test]
    fn what_is_the_same_whatever_the_token_says() {
        for (source, expected) in [
            (r#"claims.ref == "a""#, false),
            (r#"claims.ref == "a" || true"#, true),
            (r#"claims.ref == "|| true""#, false),
            (r#"claims.ref == "a" || claims.ref != "a""#, true),
            (r#""a" == claims.ref || !(claims["ref"] == "a")"#, true),
            (r#"claims.ref != "a" || claims.ref != "b""#, true),
            (r#"claims.ref != "a" && claims.ref != "b""#, false),
            (r#"claims.ref == "a" && claims.ref == "b""#, true),
            (r#"claims.ref == "a" || claims.ref != "b""#, false),
            (r#"claims.actor == "x" && (claims.ref == "a" || claims.actor == "y" || claims.ref != "a")"#, true),
            (r#"claims.ref == "a" ? true : true"#, true),
            (r#"claims.ref == "a" ? true : false"#, false),
            (r#"claims.ref == claims.ref"#, true),
            (r#"size(claims.ref) >= 0"#, true),
            (r#"size(claims.ref) > 0"#, false),
            (r#"claims.ref.startsWith("")"#, true),
            (r#"has(claims.ref) || !has(claims.ref)"#, true),
        ] {
            assert_eq!(condition(source).is_idle(), expected, "{source}");
        }
    }
}
