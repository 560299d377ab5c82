use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::*;

fn render(source: &str, variables: &Json) -> Result<String, TemplateError> {
    let template = ChatTemplate::new(source, [])?;
    let variables = variables.as_object().unwrap();
    template.render_with(variables.iter().map(|(name, value)| (name.clone(), json::to_value(value))))
}

fn rendered(source: &str, variables: &Json) -> String {
    render(source, variables).unwrap()
}

/// A conversation rendered by transformers, as `cases.json` holds it.
fn golden(folder: &Path, case: &Json) -> Result<String, TemplateError> {
    let file = format!("{}.jinja", case["template"].as_str().unwrap());
    let source = std::fs::read_to_string(folder.join(file)).unwrap();
    let mut variables = case["extra"].as_object().cloned().unwrap_or_default();
    for name in ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools"] {
        variables.insert(name.to_owned(), case.get(name).cloned().unwrap_or_default());
    }
    render(&source, &Json::Object(variables))
}

#[test]
fn agrees_with_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templates");
    let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Json> = serde_json::from_str(&cases).unwrap();
    assert!(!cases.is_empty());
    for (index, case) in cases.iter().enumerate() {
        let expected = match (case["expected"].as_str(), case["error"].as_str()) {
            (Some(text), _) => Ok(text.to_owned()),
            (None, message) => Err(TemplateError::Raised { message: message.unwrap().to_owned() }),
        };
        assert_eq!(golden(&folder, case), expected, "case {index}: {}", case["template"]);
    }
}

#[test]
fn python_s_methods_and_printing() {
    let variables = json!({ "s": " Ab,cd ", "d": { "k": 1, "z": null }, "l": [1, 2.0, true, "x'y"] });
    for (source, expected) in [
        ("{{ s.strip().split(',')[-1].upper() }}", "CD"),
        ("{{ s.startswith(' A') and 'b' in s }}", "True"),
        ("{{ d.get('q', 7) }}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "7k=1;z=None;"),
        ("{{ l[::-1][0] }}{{ l[1:] | length }}{{ l }}", "x'y3[1, 2.0, True, \"x'y\"]"),
        (
            "{%- set ns = namespace(n=0) %}{% for x in l %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "4",
        ),
        ("{% for x in l %}{% if loop.index == 3 %}{% break %}{% endif %}{{ x }},{% endfor %}", "1,2.0,"),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        ("{{ missing }}{{ missing is defined }}{{ d.nothing is none }}", "FalseFalse"),
        ("{{ 'a' ~ 1 ~ none ~ true }}", "a1NoneTrue"),
        ("{{ 'a\n\nb' | indent(2) }}{{ 'a\nb' | indent('>', first=true) }}", "a\n\n  b>a\n>b"),
        (
            "{{ l | join('-') }}{{ ['a', 'b'] | join }}{{ s | trim | replace('b', 'x') | upper }}",
            "1-2.0-True-x'yabAX,CD",
        ),
        ("{{ s.replace('A', 'B') | trim }}{{ ','.join(['a', 'b']) }}", "Bb,cda,b"),
    ] {
        assert_eq!(rendered(source, &variables), expected, "{source}");
    }
}

#[test]
fn tojson_is_python_s_json_dumps() {
    let value = json!({ "v": { "b": [1, 2.5, 1e20, true, null], "a": "<é\"\n\u{1}>", "e": {}, "l": [] } });
    for (source, expected) in [
        ("{{ v | tojson }}", r#"{"b": [1, 2.5, 1e+20, true, null], "a": "<é\"\n\u0001>", "e": {}, "l": []}"#),
        (
            "{{ v | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1,\n    2.5,\n    1e+20,\n    true,\n    null\n  ],\n  \"a\": \"<é\\\"\\n\\u0001>\",\n  \"e\": {},\n  \"l\": []\n}",
        ),
        (
            "{{ v | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
            r#"{"a":"<\u00e9\"\n\u0001>","b":[1,2.5,1e+20,true,null],"e":{},"l":[]}"#,
        ),
    ] {
        assert_eq!(rendered(source, &value), expected, "{source}");
    }
}

#[test]
fn generation_tags_are_tolerated() {
    let source = "a{%- generation %}b{{ x }}{% endgeneration -%} c{%generation%}d{%endgeneration%}";
    assert_eq!(rendered(source, &json!({ "x": 1 })), "ab1cd");
}

#[test]
fn refusals_and_defects_are_told_apart() {
    let raised = TemplateError::Raised { message: "roles must alternate".to_owned() };
    assert_eq!(render("{{ raise_exception('roles must alternate') }}", &json!({})), Err(raised));
    let syntax = ChatTemplate::new("{% if %}", []).unwrap_err();
    assert!(matches!(syntax, TemplateError::Syntax { .. }), "{syntax}");
    let unknown = render("{{ missing.field }}", &json!({})).unwrap_err();
    assert!(matches!(unknown, TemplateError::Render { .. }), "{unknown}");
}

#[test]
fn hostile_templates_meet_a_limit() {
    let big = json!({ "s": "x".repeat(1 << 20), "empty": [] });
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 1000000000000 }}",
        "{% set ns = namespace(s='x' * 100) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{{ s.replace('x', s) }}",
        "{{ s.join([s] * 100000) }}",
        "{{ ''.join([s] * 100000) }}",
        "{{ '{:>999999999}'.format('x') }}",
        "{{ ('{0}' * 100000).format(s) }}",
        "{{ '%999999999s' | format('x') }}",
        "{% for i in range(99999) %}{% if s.find('y') == 5 %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% if s.count('y') == 5 %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{{ s | length }}{% endfor %}",
        "{% for i in range(99999) %}{% set q = s[::-1] %}{% endfor %}",
        "{% for i in range(99999) %}{% set q = s | replace('y', 'z') %}{% endfor %}",
        "{{ empty | tojson(indent=99999999999) }}",
        "{{ ('a\nb' * 1000) | indent(999999999) }}",
        "{{ 10 ** 100000000 }}",
        "{% for i in range(99999) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
    ] {
        let started = std::time::Instant::now();
        let error = match render(source, &big) {
            Ok(text) => panic!("{source} gave {} bytes", text.len()),
            Err(error) => error,
        };
        let kind = matches!(error, TemplateError::Limit | TemplateError::Render { .. });
        assert!(kind, "{source}: {error}");
        println!("{:>6} ms {source}: {error}", started.elapsed().as_millis());
    }
    assert_eq!(ChatTemplate::new(&" ".repeat(2 << 20), []).unwrap_err(), TemplateError::Limit);
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(ChatTemplate::new(&deep, []).is_err());
}

#[test]
fn a_long_conversation_is_within_the_limit() {
    let message = json!({ "role": "user", "content": "word ".repeat(200) });
    let messages = vec![message; 4000];
    let source =
        "{% for m in messages %}{% if m.role == 'user' %}<{{ m['content'] | trim }}>{% endif %}{% endfor %}";
    assert_eq!(rendered(source, &json!({ "messages": messages })).len(), 4000 * 1001);
}

#[test]
fn without_a_template_roles_are_plain_words() {
    let template = ChatTemplate::plain([("bos_token", "<s>")]).unwrap();
    let variables = json!({
        "bos_token": "<s>", "add_generation_prompt": true,
        "messages": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi" }],
    });
    let variables: Map<String, Json> = variables.as_object().unwrap().clone();
    let values = variables.iter().map(|(name, value)| (name.clone(), json::to_value(value)));
    assert_eq!(template.render_with(values).unwrap(), "<s>System: Be brief.\nUser: Hi\nAssistant:");
}
