//! The language through its own door: a source in, a value or a sentence out.

use keelson_cel::{Env, PER_CALL_LIMIT, Range, Sizes, Type, Value, eval};

fn env() -> Env {
    let inner = Type::object("inner", [("name", Type::String), ("list", Type::list(Type::String))]);
    Env::new([
        ("x", Type::Int),
        ("d", Type::Dyn),
        ("s", Type::String),
        ("l", Type::list(Type::Int)),
        ("m", Type::map(Type::String, Type::Int)),
        ("o", inner),
    ])
}

fn variable(name: &str) -> Option<Result<Value, eval::EvalError>> {
    let json = |text: &str| serde_json::from_str(text).map(|v: serde_json::Value| Value::from_json(&v)).ok();
    let value = match name {
        "x" => Some(Value::Int(3)),
        "d" => json(r#"{"a": {"b": [1, "two", 3.5]}, "n": null}"#),
        "s" => Some(Value::string("héllo wörld")),
        "l" => json("[3, 1, 2]"),
        "m" => json(r#"{"a": 1, "b": 2}"#),
        "o" => json(r#"{"name": "n"}"#),
        _ => None,
    };
    value.map(Ok)
}

fn run(source: &str) -> Result<Value, String> {
    let program = env().compile(source).map_err(|e| e.0)?;
    program.run(&variable, PER_CALL_LIMIT).0.map_err(|e| e.to_string())
}

#[test]
fn the_language_does_what_it_says() {
    let sources = [
        // operators
        "1 + 2 * 3 == 7 && -x == -3 && 7 % 4 == 3 && 7 / 2 == 3 && 2.5 * 2.0 == 5.0",
        "x < 4 && x <= 3 && 3u < 4u && 1 < 2.5 && 2u > 1 && 'a' < 'b' && b'a' < b'b'",
        "'a' + 'b' == 'ab' && [1] + [2] == [1, 2] && b'a' + b'b' == b'ab'",
        "(true || d.nothing) && !(false && d.nothing) && (d.nothing || true)",
        "x == 3 ? true : d.nothing",
        "1 in l && !('z' in m) && 'a' in m && 2 in [1, 2]",
        "dyn(1) == 1.0 && dyn(1u) == 1 && d.a.b[0] == 1 && d.a.b[2] == 3.5 && d.n == null && d != 1",
        "-9223372036854775808 < 0 && 0x10 == 16 && 1e3 == 1000.0 && r'\\d' == '\\\\d' && '\\u00e9' == 'é'",
        // macros
        "l.all(i, i > 0) && l.exists(i, i == 2) && l.exists_one(i, i == 2) && !l.exists_one(i, i > 1)",
        "l.map(i, i * 2) == [6, 2, 4] && l.map(i, i > 1, i * 2) == [6, 4] && l.filter(i, i > 1) == [3, 2]",
        "m.all(k, m[k] > 0) && m.map(k, k) == ['a', 'b'] && m.exists(k, v, v == 2) && l.all(i, v, i < 3 && v > 0)",
        "l.transformList(i, v, i + v) == [3, 2, 4] && m.transformMap(k, v, v + 1) == {'a': 2, 'b': 3}",
        "m.transformMapEntry(k, v, {v: k}) == {1: 'a', 2: 'b'} && l.map(i, l.filter(j, j < i)).size() == 3",
        "has(d.a) && !has(d.z) && has(o.name) && !has(o.list)",
        // optional values
        "d.?a.?b[0].orValue(9) == 1 && d.?z.?b.orValue('x') == 'x' && !d.?z.hasValue() && d[?'a'].hasValue()",
        "l[?0].value() == 3 && l[?9].orValue(7) == 7 && optional.none().or(optional.of(1)).value() == 1",
        "d.?a.optMap(v, v.b.size()).orValue(0) == 3 && d.?z.optFlatMap(v, v.?y).orValue(1) == 1",
        "[1, ?l[?9], ?l[?0]] == [1, 3] && {'a': 1, ?'b': optional.none()}.size() == 1",
        "optional.ofNonZeroValue('').hasValue() == false && o.?list.orValue([]).size() == 0",
        // conversions and types
        "int('42') == 42 && string(42) == '42' && double('1.5') == 1.5 && uint(3) == 3u && bool('true') && int(3.9) == 3",
        "string(1.5) == '1.5' && string(1e21) == '1e+21' && string(true) == 'true' && string(b'abc') == 'abc' && bytes('a') == b'a'",
        "type(x) == int && type(l) == list && type(m) == map && type(null) == null_type && type(type(1)) == type",
        "s.size() == 11 && size(l) == 3 && m.size() == 2 && b'ab'.size() == 2 && dyn(x) == 3 && o.size() == 1",
        // strings
        "s.contains('llo') && s.startsWith('hé') && s.endsWith('ld') && s.charAt(1) == 'é' && s.indexOf('ö') == 7",
        "s.lastIndexOf('l') == 9 && s.indexOf('l', 4) == 9 && s.substring(6) == 'wörld' && s.substring(0, 2) == 'hé'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'abc'.split('', 2) == ['a', 'bc'] && ['a', 'b'].join('-') == 'a-b' && ' a '.trim() == 'a'",
        "'aXa'.lowerAscii() == 'axa' && 'aa'.replace('a', 'b') == 'bb' && 'aa'.replace('a', 'b', 1) == 'ba' && strings.quote('a\"b') == '\"a\\\\\"b\"'",
        "'%s is %d, %.2f, %x, %b'.format([dyn('a'), 3, 1.5, 255, 5]) == 'a is 3, 1.50, ff, 101' && '%s'.format([[dyn(1), 'a']]) == '[1, a]'",
        "'abc123'.matches('^[a-z]+[0-9]+$') && 'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'a1b2'.findAll('[0-9]', 1) == ['1']",
        // lists and sets
        "[1, 2].isSorted() && !l.isSorted() && l.sum() == 6 && l.min() == 1 && l.max() == 3 && l.indexOf(2) == 2 && [1, 1].lastIndexOf(1) == 1",
        "sets.contains(l, [1]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects(l, [3, 9]) && !sets.intersects(l, [9])",
        // time
        "duration('1h30m') == duration('90m') && duration('2h') > duration('1h') && duration('90s').getMinutes() == 1 && string(duration('1.5s')) == '1.5s'",
        "timestamp('2026-01-02T03:04:05Z').getFullYear() == 2026 && timestamp('2026-01-02T03:04:05Z').getMonth() == 0 && timestamp('2026-01-02T03:04:05Z').getHours('+02:00') == 5",
        "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h') && timestamp('2026-01-01T00:00:00Z') + duration('1h') > timestamp('2026-01-01T00:59:00Z')",
        // Kubernetes' libraries
        "url('https://u@example.com:80/a%20b?k=v&k=w').getHost() == 'example.com:80' && url('https://[::1]:8080/').getHostname() == '::1' && url('/a').getEscapedPath() == '/a'",
        "url('https://e.com/?k=v&k=w').getQuery() == {'k': ['v', 'w']} && isURL('https://a.b') && !isURL('a b') && url('https://e.com:1/').getPort() == '1'",
        "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('50k').add(20).sub(quantity('20')).asInteger() == 50000 && quantity('1.5').sign() == 1 && !quantity('1500m').isInteger()",
        "quantity('1k') == quantity('1000') && quantity('1').compareTo(quantity('2')) == -1 && isQuantity('1Ki') && !isQuantity('x') && quantity('1500m').asApproximateFloat() == 1.5",
        "ip('192.168.0.1').family() == 4 && isIP('::1') && !isIP('1.2.3') && ip('127.0.0.1').isLoopback() && ip.isCanonical('::1') && !ip.isCanonical('0:0::1') && string(ip('1.2.3.4')) == '1.2.3.4'",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16')) && cidr('10.1.0.0/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').prefixLength() == 8 && !isCIDR('10.0.0.0/64')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2 && isSemver('1.0.0-rc.1') && !isSemver('1.0') && semver('1.0.0').compareTo(semver('1.0.0')) == 0",
        "!format.named('dns1123Label').value().validate('abc').hasValue() && format.dns1123Label().validate('A_b').hasValue() && !format.named('x').hasValue() && !format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()",
    ];
    let wrong = sources
        .map(|source| (source, run(source)))
        .into_iter()
        .filter(|(_, got)| *got != Ok(Value::Bool(true)));
    assert_eq!(wrong.collect::<Vec<_>>(), []);
}

#[test]
fn what_fails_says_why() {
    for (source, why) in [
        ("d.z == 1", "no such key: z"),
        ("m['z'] == 1", "no such key: z"),
        ("l[9] == 1", "index out of bounds: 9"),
        ("1 / (x - 3) == 1", "division by zero"),
        ("1 % (x - 3) == 1", "modulus by zero"),
        ("x + 9223372036854775807 == 0", "integer overflow"),
        ("d.a > 1", "no such overload"),
        (
            "duration(s) == duration('1s')",
            "type conversion error from 'string' to 'google.protobuf.Duration'",
        ),
        ("int(s) == 1", "type conversion error from 'string' to 'int'"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("[].max() == 1", "max called on empty list"),
        (
            "quantity('zz').sign() == 1",
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        assert_eq!(run(source), Err(why.into()), "{source}");
    }
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let said = |source: &str| env().compile(source).expect_err(source).0;
    assert_eq!(
        said("nope"),
        "ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')\n | nope\n | ^"
    );
    assert_eq!(said("o.zz"), "ERROR: <input>:1:2: undefined field 'zz'\n | o.zz\n | .^");
    assert!(said("x + s").contains("1:3: found no matching overload for '_+_' applied to '(int, string)'"));
    assert!(
        said("s.startsWith(x)")
            .contains("found no matching overload for 'startsWith' applied to 'string.(int)'")
    );
    assert!(said("x && true").contains("1:1: expected type 'bool' but found 'int'"));
    assert!(said("[1, 'a']").contains("expected type 'int' but found 'string'"));
    assert!(said("x.all(i, true)").contains("expression of type 'int' cannot be range of a comprehension"));
    assert!(said("x.y").contains("type 'int' does not support field selection"));
    assert!(said("s.matches('(')").contains("invalid matches argument"));
    assert!(said("duration('x') == duration('1s')").contains("invalid duration argument"));
    assert!(said("size()").contains("found no matching overload for 'size' applied to '()'"));
    assert!(said("Object{}").contains("undeclared reference to 'Object'"));
    let mut env = env();
    env.patches = true;
    let output = |source: &str| env.compile(source).map(|p| p.output().to_string()).map_err(|e| e.0);
    assert_eq!(output("Object{spec: Object.spec{a: 1}}"), Ok("Object".into()));
    assert_eq!(output("[JSONPatch{op: 'add', path: '/a', value: d}]"), Ok("list(JSONPatch)".into()));
    assert_eq!(output("d.a ? [] : [1]"), Ok("list(int)".into()));
    assert!(output("JSONPatch{nope: 1}").unwrap_err().contains("undefined field 'nope'"));
}

struct Most(u64);
impl Sizes for Most {
    fn size(&self, path: &[String]) -> Option<Range> {
        (path.len() < 3).then_some(Range { min: 0, max: self.0 })
    }
}

#[test]
fn costs_are_counted_and_estimated() {
    let cost = |source: &str| {
        let program = env().compile(source).expect(source);
        let (result, cost) = program.run(&variable, PER_CALL_LIMIT);
        assert!(result.is_ok(), "{source}");
        (cost, program.estimate(&Most(10)).max)
    };
    assert_eq!(cost("x == 3"), (2, 2), "a name and a comparison");
    assert_eq!(cost("has(d.a)").0, 1, "asking costs what leads there");
    assert_eq!(cost("true ? 1 : 2").0, 0);
    // Ten elements at most, each with the accumulator twice, the test of it, the element and the comparison.
    let (ran, most) = cost("l.all(i, i > 0)");
    assert!(ran <= most && most == 1 + 10 * 5 + 1, "{ran} {most}");
    let unbounded = env().compile("'v ' + string(x)").expect("a program").estimate(&Most(10)).max;
    assert!(unbounded > 1 << 60, "nobody knows how long that is");
    let program = env().compile("l.all(a, l.all(b, l.all(c, a + b + c > 0)))").expect("a program");
    let (result, spent) = program.run(&variable, 20);
    assert!(matches!(result, Err(eval::EvalError::OverBudget)) && spent < 40);
}
