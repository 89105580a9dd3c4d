//! What a condition comes to, as its tree shows: for the linter, which asks what a person overlooked.

use super::{claim_name, literal, literal_text};
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators as op};

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

/// Calls `visit` for every text that is written out in the tree, but for claims' names.
pub(super) fn each_text<'e>(expr: &'e IdedExpr, visit: &mut dyn FnMut(&'e str)) {
    if claim_name(expr).is_some() {
        return;
    }
    match &expr.expr {
        Expr::Call(call) => {
            call.target.as_deref().into_iter().chain(&call.args).for_each(|operand| each_text(operand, visit));
        }
        Expr::List(list) => list.elements.iter().for_each(|item| each_text(item, visit)),
        _ => literal_text(expr).into_iter().for_each(visit),
    }
}

#[cfg(test)]
mod tests {
    use crate::{condition::Condition, issuer::Profile};

    fn condition(source: &str) -> Condition {
        Condition::compile(source, &Profile::named("github").expect("a profile")).expect(source)
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
