//! Tokens to a tree: recursive descent with a bounded depth, since sources come from the wire.
//!
//! Messages about syntax are worded as upstream's generated parser words them, for the mistakes people make; its
//! recovery after a first mistake is not imitated: one syntax error is reported.

use crate::ast::{Expr, Kind};
use crate::lexer::{Spanned, Token, tokens};
use crate::macros;
use crate::value::Value;

/// Nesting of one expression; deeper ones are refused.
const MAX_DEPTH: usize = 100;
/// Characters of one source.
const MAX_SOURCE: usize = 100_000;
/// Nodes of one tree, macros expanded.
const MAX_NODES: usize = 50_000;

const STARTS: &str = "'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const STARTS_OR_CLOSE: &str = "'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const RESERVED: [&str; 16] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
];

/// What is wrong, and where (in characters).
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    pub at: usize,
    pub message: String,
}

type Parsed<T> = Result<T, Mistake>;

pub struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    depth: usize,
    nodes: usize,
}

/// Parses a source. The second value is the number of ids given out.
pub fn parse(source: &str) -> Parsed<(Expr, usize)> {
    if source.chars().count() > MAX_SOURCE {
        let message =
            format!("expression code point size exceeds limit: size: {}, limit {MAX_SOURCE}", source.len());
        return Err(Mistake { at: 0, message });
    }
    let tokens = tokens(source).map_err(|e| Mistake { at: e.at, message: e.message })?;
    let mut parser = Parser { tokens, at: 0, depth: 0, nodes: 0 };
    let expr = parser.expression(STARTS)?;
    if parser.next().token != Token::End {
        return Err(parser.unexpected("<EOF>", |t| *t == Token::End));
    }
    Ok((expr, parser.nodes))
}

/// Whether an expression can begin with this.
fn starts(token: &Token) -> bool {
    match token {
        Token::Literal(_) | Token::Ident(_) => true,
        Token::Mark(mark) => ["[", "{", "(", ".", "-", "!"].contains(mark),
        Token::Escaped(_) | Token::End => false,
    }
}

impl Parser {
    fn next(&self) -> &Spanned {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn after(&self, ahead: usize) -> &Token {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].token
    }

    fn take(&mut self) -> Spanned {
        let token = self.next().clone();
        self.at += 1;
        token
    }

    fn is(&self, mark: &str) -> bool {
        matches!(self.next().token, Token::Mark(m) if m == mark)
    }

    fn eat(&mut self, mark: &str) -> Option<usize> {
        self.is(mark).then(|| self.take().at)
    }

    /// Makes a node.
    pub fn node(&mut self, at: usize, kind: Kind) -> Expr {
        self.nodes += 1;
        Expr { id: self.nodes - 1, at, kind }
    }

    /// Refuses trees that grew too large; macros copy parts of them.
    pub fn bounded(&self, at: usize) -> Result<(), Mistake> {
        if self.nodes > MAX_NODES {
            return Err(Mistake { at, message: format!("expression has more than {MAX_NODES} parts") });
        }
        Ok(())
    }

    pub fn call(&mut self, at: usize, function: &str, args: Vec<Expr>) -> Expr {
        self.node(at, Kind::Call { function: function.into(), target: None, args })
    }

    /// A token nobody expects here: one too many when what follows it would do, the wrong one otherwise.
    fn unexpected(&self, expecting: &str, fits: impl Fn(&Token) -> bool) -> Mistake {
        let found = self.next();
        let extra = found.token != Token::End && fits(self.after(1));
        let what = if extra { "extraneous" } else { "mismatched" };
        let set = if expecting.contains(", ") { format!("{{{expecting}}}") } else { expecting.to_owned() };
        Mistake {
            at: found.at,
            message: format!("Syntax error: {what} input '{}' expecting {set}", found.text),
        }
    }

    fn expect(&mut self, mark: &str) -> Parsed<usize> {
        if let Some(at) = self.eat(mark) {
            return Ok(at);
        }
        let found = self.next();
        Err(Mistake { at: found.at, message: format!("Syntax error: missing '{mark}' at '{}'", found.text) })
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        let at = self.next().at;
        if self.depth > MAX_DEPTH || self.nodes > MAX_NODES {
            let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
            return Err(Mistake { at, message });
        }
        let out = parse(self);
        self.depth -= 1;
        out
    }

    fn expression(&mut self, expecting: &str) -> Parsed<Expr> {
        self.deeper(|parser| {
            let condition = parser.junction("||", expecting)?;
            let Some(at) = parser.eat("?") else { return Ok(condition) };
            let yes = parser.junction("||", STARTS)?;
            if parser.eat(":").is_none() {
                let found = parser.next();
                let message = format!("Syntax error: mismatched input '{}' expecting ':'", found.text);
                return Err(Mistake { at: found.at, message });
            }
            let no = parser.expression(STARTS)?;
            Ok(parser.call(at, "_?_:_", vec![condition, yes, no]))
        })
    }

    /// `||` over `&&` over relations. Chains become balanced trees, so their length costs no depth.
    fn junction(&mut self, mark: &'static str, expecting: &str) -> Parsed<Expr> {
        let mut terms = vec![];
        let mut ats = vec![];
        loop {
            let expecting = if terms.is_empty() { expecting } else { STARTS };
            terms.push(if mark == "||" {
                self.junction("&&", expecting)?
            } else {
                self.chain(&["<", "<=", ">=", ">", "==", "!=", "in"], expecting)?
            });
            match self.eat(mark) {
                Some(at) => ats.push(at),
                None => break,
            }
        }
        let function = if mark == "||" { "_||_" } else { "_&&_" };
        Ok(self.balanced(function, &mut terms.into_iter().map(Some).collect::<Vec<_>>(), &ats))
    }

    fn balanced(&mut self, function: &str, terms: &mut [Option<Expr>], ats: &[usize]) -> Expr {
        if terms.len() == 1 {
            let none = || Expr { id: 0, at: 0, kind: Kind::Literal(Value::Null) };
            return terms[0].take().unwrap_or_else(none);
        }
        let middle = terms.len().div_ceil(2);
        let (left, right) = terms.split_at_mut(middle);
        let left = self.balanced(function, left, &ats[..middle - 1]);
        let right = self.balanced(function, right, &ats[middle..]);
        self.call(ats[middle - 1], function, vec![left, right])
    }

    /// Left-associative operators of one precedence.
    fn chain(&mut self, marks: &[&'static str], expecting: &str) -> Parsed<Expr> {
        let operand = |parser: &mut Parser, expecting: &str| match marks[0] {
            "<" => parser.chain(&["+", "-"], expecting),
            "+" => parser.chain(&["*", "/", "%"], expecting),
            _ => parser.unary(expecting),
        };
        let mut left = operand(self, expecting)?;
        let before = self.depth;
        while let Token::Mark(mark) = self.next().token
            && marks.contains(&mark)
        {
            let at = self.take().at;
            // The tree grows to the left: a long chain is a deep tree.
            self.depth += 1;
            let right = self.deeper(|parser| operand(parser, STARTS))?;
            let function = if mark == "in" { "@in".to_owned() } else { format!("_{mark}_") };
            left = self.call(at, &function, vec![left, right]);
        }
        self.depth = before;
        Ok(left)
    }

    fn unary(&mut self, expecting: &str) -> Parsed<Expr> {
        for (mark, function) in [("!", "!_"), ("-", "-_")] {
            let Some(at) = self.eat(mark) else { continue };
            if mark == "-"
                && let Token::Literal(value @ (Value::Int(_) | Value::Double(_))) = &self.next().token
            {
                let value = match value {
                    Value::Int(n) => Value::Int(n.wrapping_neg()),
                    Value::Double(n) => Value::Double(-n),
                    other => other.clone(),
                };
                self.take();
                let literal = self.node(at, Kind::Literal(value));
                return self.members(literal);
            }
            // Pairs of the same sign cancel out.
            let mut odd = true;
            while self.eat(mark).is_some() {
                odd = !odd;
            }
            let operand = self.deeper(|parser| parser.unary(STARTS))?;
            return Ok(if odd { self.call(at, function, vec![operand]) } else { operand });
        }
        let primary = self.primary(expecting)?;
        self.members(primary)
    }

    fn members(&mut self, mut left: Expr) -> Parsed<Expr> {
        let before = self.depth;
        loop {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
                return Err(Mistake { at: self.next().at, message });
            }
            if let Some(at) = self.eat(".") {
                left = self.member(left, at)?;
            } else if let Some(at) = self.eat("[") {
                let optional = self.eat("?").is_some();
                let index = self.expression(STARTS)?;
                if self.eat("]").is_none() {
                    return Err(self.unexpected("']'", |t| *t == Token::Mark("]")));
                }
                let function = if optional { "_[?_]" } else { "_[_]" };
                left = self.call(at, function, vec![left, index]);
            } else if self.is("{")
                && let Some(name) = left.qualified()
            {
                left = self.message(name)?;
            } else {
                self.depth = before;
                return Ok(left);
            }
        }
    }

    fn member(&mut self, operand: Expr, at: usize) -> Parsed<Expr> {
        let optional = self.eat("?").is_some();
        let token = self.take();
        let field = match &token.token {
            Token::Ident(name) | Token::Escaped(name) => name.clone(),
            // Words that only mean something elsewhere are fine as fields.
            Token::Mark("in") => "in".to_owned(),
            Token::Literal(Value::Bool(_) | Value::Null) => token.text.clone(),
            _ => {
                let message = format!("Syntax error: no viable alternative at input '.{}'", token.text);
                let message = if token.token == Token::End { message.replace("<EOF>", "") } else { message };
                return Err(Mistake { at: token.at, message });
            }
        };
        if optional {
            let name = self.node(token.at, Kind::Literal(Value::string(field)));
            return Ok(self.call(at, "_?._", vec![operand, name]));
        }
        if let Some(open) = self.eat("(").filter(|_| matches!(token.token, Token::Ident(_))) {
            let args = self.arguments()?;
            return macros::receiver(self, open, field, operand, args);
        }
        Ok(self.node(at, Kind::Select { operand: Box::new(operand), field, test: false }))
    }

    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        let mut args = vec![];
        if self.eat(")").is_some() {
            return Ok(args);
        }
        let mut expecting = STARTS_OR_CLOSE;
        loop {
            args.push(self.expression(expecting)?);
            expecting = STARTS;
            if self.eat(")").is_some() {
                return Ok(args);
            }
            if self.eat(",").is_none() {
                return Err(self.unexpected("')', ','", |t| matches!(t, Token::Mark(")" | ","))));
            }
        }
    }

    fn primary(&mut self, expecting: &str) -> Parsed<Expr> {
        if !starts(&self.next().token) || self.is("-") || self.is("!") {
            return Err(self.unexpected(expecting, starts));
        }
        let token = self.take();
        match token.token {
            Token::Literal(Value::Int(i64::MIN)) => {
                Err(Mistake { at: token.at, message: "invalid int literal".into() })
            }
            Token::Literal(value) => Ok(self.node(token.at, Kind::Literal(value))),
            Token::Mark("(") => {
                let inner = self.expression(STARTS)?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Mark("[") => self.list(token.at),
            Token::Mark("{") => self.map(token.at),
            Token::Mark(_) => {
                // A leading dot: a name from the root.
                let name = self.take();
                match name.token {
                    Token::Ident(word) => self.name(name.at, word),
                    _ => Err(Mistake {
                        at: name.at,
                        message: format!(
                            "Syntax error: mismatched input '{}' expecting IDENTIFIER",
                            name.text
                        ),
                    }),
                }
            }
            Token::Ident(word) => self.name(token.at, word),
            Token::Escaped(_) | Token::End => Err(self.unexpected(expecting, starts)),
        }
    }

    fn name(&mut self, at: usize, word: String) -> Parsed<Expr> {
        if RESERVED.contains(&word.as_str()) {
            return Err(Mistake { at, message: format!("reserved identifier: {word}") });
        }
        if let Some(open) = self.eat("(") {
            let args = self.arguments()?;
            return macros::global(self, open, word, args);
        }
        Ok(self.node(at, Kind::Ident(word)))
    }

    fn list(&mut self, at: usize) -> Parsed<Expr> {
        let mut items = vec![];
        while self.eat("]").is_none() {
            let optional = self.eat("?").is_some();
            items.push((self.expression(STARTS)?, optional));
            if self.eat(",").is_none() && !self.is("]") {
                return Err(self.unexpected("']', ','", |t| matches!(t, Token::Mark("]" | ","))));
            }
        }
        Ok(self.node(at, Kind::List(items)))
    }

    fn map(&mut self, at: usize) -> Parsed<Expr> {
        let mut entries = vec![];
        while self.eat("}").is_none() {
            let optional = self.eat("?").is_some();
            let key = self.expression(STARTS)?;
            if self.eat(":").is_none() {
                let found = self.next();
                let message = format!("Syntax error: mismatched input '{}' expecting ':'", found.text);
                return Err(Mistake { at: found.at, message });
            }
            entries.push((key, self.expression(STARTS)?, optional));
            if self.eat(",").is_none() && !self.is("}") {
                return Err(self.unexpected("'}', ','", |t| matches!(t, Token::Mark("}" | ","))));
            }
        }
        Ok(self.node(at, Kind::Map(entries)))
    }

    fn message(&mut self, name: String) -> Parsed<Expr> {
        let open = self.take().at;
        let mut fields = vec![];
        while self.eat("}").is_none() {
            let optional = self.eat("?").is_some();
            let field = match &self.next().token {
                Token::Ident(word) | Token::Escaped(word) => word.clone(),
                _ => {
                    return Err(self.unexpected("'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER", |t| {
                        matches!(t, Token::Ident(_) | Token::Escaped(_) | Token::Mark("}" | "," | "?"))
                    }));
                }
            };
            self.take();
            let Some(at) = self.eat(":") else {
                let found = self.next();
                let message = format!("Syntax error: mismatched input '{}' expecting ':'", found.text);
                return Err(Mistake { at: found.at, message });
            };
            fields.push((field, self.expression(STARTS)?, optional, at));
            if self.eat(",").is_none() && !self.is("}") {
                return Err(self.unexpected("'}', ','", |t| matches!(t, Token::Mark("}" | ","))));
            }
        }
        Ok(self.node(open, Kind::Struct { name, fields }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mistake(source: &str) -> String {
        let mistake = parse(source).expect_err(source);
        format!("{}: {}", mistake.at, mistake.message)
    }

    #[test]
    fn mistakes_are_worded_as_upstream_words_them() {
        assert_eq!(
            mistake("self.a >"),
            format!("8: Syntax error: mismatched input '<EOF>' expecting {{{STARTS}}}")
        );
        assert_eq!(
            mistake("foo("),
            format!("4: Syntax error: mismatched input '<EOF>' expecting {{{STARTS_OR_CLOSE}}}")
        );
        assert_eq!(
            mistake("1 +* 2"),
            format!("3: Syntax error: extraneous input '*' expecting {{{STARTS}}}")
        );
        assert_eq!(mistake("a b"), "2: Syntax error: extraneous input 'b' expecting <EOF>");
        assert_eq!(mistake("[1,2"), "4: Syntax error: mismatched input '<EOF>' expecting {']', ','}");
        assert_eq!(
            mistake("Object{"),
            "7: Syntax error: mismatched input '<EOF>' expecting {'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"
        );
        assert_eq!(mistake("has(a)"), "4: invalid argument to has() macro");
        assert_eq!(mistake("a.exists(b.c, true)"), "10: argument must be a simple name");
        assert_eq!(mistake("a + if"), "4: reserved identifier: if");
        assert_eq!(mistake("@a"), "0: Syntax error: token recognition error at: '@'");
    }

    #[test]
    fn depth_is_bounded_and_length_is_not() {
        for deep in ["(", "[", "!(", "-(", "{1:", "a[", "f("] {
            assert!(parse(&deep.repeat(50_000)).is_err());
        }
        assert!(parse(&format!("a{}", ".a".repeat(5000))).is_err());
        assert!(parse(&format!("a{}", "+a".repeat(5000))).is_err());
        assert!(parse(&format!("a{}", "||a".repeat(2000))).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_gets_an_answer(source in "[a-c0-9.(){}\\[\\]?:+*/%<>=!&|'\"\\\\,`rb -]{0,60}") {
            let _ = parse(&source);
        }

        #[test]
        fn any_words_get_an_answer(words in prop::collection::vec(
            "(a|b|1|2u|1.5|'x'|all|map|has|in|\\(|\\)|\\[|\\]|\\{|\\}|\\.|,|\\?|:|\\+|-|!|==|&&|\\|\\|)", 0..30)) {
            let _ = parse(&words.join(" "));
        }
    }
}
