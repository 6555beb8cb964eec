//! Source text to tokens.

use crate::value::Value;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Literal(Value),
    Ident(String),
    /// An identifier in backticks, after a dot.
    Escaped(String),
    /// Operators and punctuation, as written.
    Mark(&'static str),
    End,
}

/// A token, where it starts (in characters), and its text.
#[derive(Debug, Clone)]
pub struct Spanned {
    pub token: Token,
    pub at: usize,
    pub text: String,
}

/// Where the text stops being the language, and why.
#[derive(Debug, Clone)]
pub struct LexError {
    pub at: usize,
    pub message: String,
}

const MARKS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%", "<", ">",
];

struct Lexer {
    text: Vec<char>,
    at: usize,
}

/// Cuts a source into tokens; the last one is [`Token::End`].
pub fn tokens(source: &str) -> Result<Vec<Spanned>, LexError> {
    let mut lexer = Lexer { text: source.chars().collect(), at: 0 };
    let mut out = vec![];
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        if at >= lexer.text.len() {
            out.push(Spanned { token: Token::End, at, text: "<EOF>".into() });
            return Ok(out);
        }
        let token = lexer.token()?;
        out.push(Spanned { token, at, text: lexer.text[at..lexer.at].iter().collect() });
    }
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip_blanks(&mut self) {
        loop {
            match self.peek(0) {
                ' ' | '\t' | '\n' | '\r' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == '/' => {
                    while self.at < self.text.len() && self.peek(0) != '\n' {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn error<T>(&self, from: usize) -> Result<T, LexError> {
        let shown: String = self.text[from..self.at.clamp(from + 1, self.text.len())].iter().collect();
        Err(LexError { at: from, message: format!("Syntax error: token recognition error at: '{shown}'") })
    }

    fn token(&mut self) -> Result<Token, LexError> {
        let c = self.peek(0);
        if let Some((raw, bytes, prefix)) = self.string_prefix() {
            return self.string(raw, bytes, prefix);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let from = self.at;
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            let word: String = self.text[from..self.at].iter().collect();
            return Ok(match word.as_str() {
                "true" => Token::Literal(Value::Bool(true)),
                "false" => Token::Literal(Value::Bool(false)),
                "null" => Token::Literal(Value::Null),
                "in" => Token::Mark("in"),
                _ => Token::Ident(word),
            });
        }
        if c == '`' {
            let from = self.at;
            self.at += 1;
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.-/ ".contains(c);
            while fits(self.peek(0)) {
                self.at += 1;
            }
            if self.peek(0) != '`' || self.at == from + 1 {
                return self.error(from);
            }
            self.at += 1;
            return Ok(Token::Escaped(self.text[from + 1..self.at - 1].iter().collect()));
        }
        let here = |mark: &str| mark.chars().enumerate().all(|(i, c)| self.peek(i) == c);
        let found = MARKS.iter().copied().find(|mark| here(mark));
        match found {
            Some(mark) => {
                self.at += mark.len();
                Ok(Token::Mark(mark))
            }
            None => {
                let from = self.at;
                self.at += 1;
                self.error(from)
            }
        }
    }

    /// Raw, bytes, and how many letters say so, when a string starts here.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut n) = (false, false, 0);
        while n < 2 {
            match self.peek(n) {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => break,
            }
            n += 1;
        }
        matches!(self.peek(n), '"' | '\'').then_some((raw, bytes, n))
    }

    fn string(&mut self, raw: bool, bytes: bool, prefix: usize) -> Result<Token, LexError> {
        let from = self.at;
        self.at += prefix;
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        let mut out: Vec<u8> = vec![];
        loop {
            if self.at >= self.text.len() {
                return self.error(from);
            }
            let c = self.peek(0);
            let closes = c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote));
            if closes {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if !triple && (c == '\n' || c == '\r') {
                return self.error(from);
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, from, &mut out)?;
            } else {
                out.extend(c.to_string().as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Literal(Value::Bytes(out.into())));
        }
        match String::from_utf8(out) {
            Ok(text) => Ok(Token::Literal(Value::string(text))),
            Err(_) => self.error(from),
        }
    }

    fn escape(&mut self, bytes: bool, from: usize, out: &mut Vec<u8>) -> Result<(), LexError> {
        let c = self.peek(0);
        self.at += 1;
        let simple = match c {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(10),
            'r' => Some(13),
            't' => Some(9),
            'v' => Some(11),
            '\\' | '\'' | '"' | '`' | '?' => Some(c as u8),
            _ => None,
        };
        if let Some(byte) = simple {
            out.push(byte);
            return Ok(());
        }
        let (digits, radix) = match c {
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => {
                self.at -= 1;
                (3, 8)
            }
            _ => return self.error(from),
        };
        let text: String = (0..digits).map(|i| self.peek(i)).collect();
        self.at += digits;
        let Ok(code) = u32::from_str_radix(&text, radix) else { return self.error(from) };
        if bytes && digits <= 3 {
            out.push(code as u8);
            return Ok(());
        }
        match char::from_u32(code) {
            Some(c) => {
                out.extend(c.to_string().as_bytes());
                Ok(())
            }
            None => self.error(from),
        }
    }

    fn number(&mut self) -> Result<Token, LexError> {
        let from = self.at;
        if self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
            let digits: String = self.text[from + 2..self.at].iter().collect();
            return self.whole(from, &digits, 16);
        }
        let digits = |lexer: &mut Lexer| {
            while lexer.peek(0).is_ascii_digit() {
                lexer.at += 1;
            }
        };
        digits(self);
        let mut fraction = false;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            fraction = true;
            self.at += 1;
            digits(self);
        }
        if matches!(self.peek(0), 'e' | 'E') {
            let sign = usize::from(matches!(self.peek(1), '+' | '-'));
            if self.peek(1 + sign).is_ascii_digit() {
                fraction = true;
                self.at += 1 + sign;
                digits(self);
            }
        }
        let text: String = self.text[from..self.at].iter().collect();
        if fraction {
            return match text.parse::<f64>() {
                Ok(n) => Ok(Token::Literal(Value::Double(n))),
                Err(_) => Err(LexError { at: from, message: "invalid double literal".into() }),
            };
        }
        self.whole(from, &text, 10)
    }

    fn whole(&mut self, from: usize, digits: &str, radix: u32) -> Result<Token, LexError> {
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return match u64::from_str_radix(digits, radix) {
                Ok(n) => Ok(Token::Literal(Value::Uint(n))),
                Err(_) => Err(LexError { at: from, message: "invalid uint literal".into() }),
            };
        }
        // The smallest integer is written with a sign, which the parser puts before it.
        match u64::from_str_radix(digits, radix) {
            Ok(n) if n <= i64::MAX as u64 => Ok(Token::Literal(Value::Int(n as i64))),
            Ok(n) if n == 1 << 63 => Ok(Token::Literal(Value::Int(i64::MIN))),
            _ => Err(LexError { at: from, message: "invalid int literal".into() }),
        }
    }
}
