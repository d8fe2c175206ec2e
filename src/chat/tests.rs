use super::*;
use std::time::Instant;

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn template(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::new(source.to_owned(), &Tokenizer::gpt2().unwrap())
}

fn messages() -> Vec<Message> {
    vec![Message::new("user", " Hi "), Message::new("assistant", "Ho"), Message::new("user", "?")]
}

#[test]
fn conversations_become_text() {
    let text = template(CHATML).unwrap().render(&messages(), true).unwrap();
    let want = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text, want);
    let source = "{{ bos_token }}\n{%- for m in messages %}\n    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        {{- raise_exception('roles must alternate') }}\n    {%- endif %}\n{{ m['content'] | trim }}{{ eos_token }}\n{%- endfor %}";
    let alternating = template(source).unwrap();
    assert_eq!(
        alternating.render(&messages(), false).unwrap(),
        "<|endoftext|>Hi<|endoftext|>Ho<|endoftext|>?<|endoftext|>"
    );
    let error = alternating.render(&messages()[1..], false).unwrap_err().to_string();
    assert!(error.contains("roles must alternate"), "{error}");
}

#[test]
fn it_is_found_where_hugging_face_puts_it() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), Tokenizer::gpt2().unwrap());
    assert!(ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap().is_none());
    let settings = dir.path().join("tokenizer_config.json");
    for (value, want) in [
        (serde_json::json!({"chat_template": "a"}), Some("a")),
        (
            serde_json::json!({"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "b"}]}),
            Some("b"),
        ),
        (serde_json::json!({}), None),
    ] {
        std::fs::write(&settings, value.to_string()).unwrap();
        let found = ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap();
        assert_eq!(found.as_ref().map(ChatTemplate::source), want);
    }
    std::fs::write(dir.path().join("chat_template.jinja"), "c").unwrap();
    assert_eq!(ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap().unwrap().source(), "c");
}

/// Endless, huge, recursive, reaching outside: each is an error, at once and in little memory.
#[test]
fn hostile_templates_are_refused() {
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for a in range(99999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends '/etc/passwd' %}",
        "{{ self.__init__.__globals__.os.system('true') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}{{ messages.__class__.__base__.x }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__ }}{{ lipsum.__globals__.os }}",
        "{{ config.items() }}",
        "{{ request.application }}",
        "{{ get_flashed_messages.__globals__ }}",
        "{{ open('/etc/passwd').read() }}",
        "{{ range(9999999999) | list }}",
        "{{ 'a' * 99999999999 }}",
        "{% set x = 'aaaaaaaaaa' %}{% for i in range(60) %}{% set x = x ~ x %}{% endfor %}{{ x.y.z }}",
        "{% for i in range(1, 100000) %}{{ messages | tojson }}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.x }}",
        "{{ undefined_function() }}",
        "{% unknown_tag %}",
        "{{ unclosed",
        "{{ raise_exception('no') }}",
        "{% set ns = namespace(x=[1.5]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1.5]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ 'a'.center(99999999) }}",
        "{{ 'a'.zfill(99999999) }}",
        "{{ messages | tojson(indent=99999999) }}",
        "{{ '%99999999d' % 5 }}",
        "{{ ('\\n' * 1000000) | indent('xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx', blank=true) }}",
        "{{ ('\\t' * 1000000).expandtabs(1000) }}",
        "{{ strftime_now('%Q') }}",
    ];
    for source in hostile {
        let begun = Instant::now();
        let result = template(source).and_then(|t| t.render(&messages(), true));
        let took = begun.elapsed();
        let error = result.expect_err(source);
        assert!(error.downcast_ref::<crate::runtime::error::Failure>().is_some(), "{source}: {error}");
        assert!(took.as_millis() < 1500, "{source}: {took:?}");
    }
    // Sources that take long to read.
    for part in ["\\'", "{{ ", "{% '", "'%s' % (", "{#}", "{{ '%s' % "] {
        let source = format!("{{{{ {}", part.repeat(MAX_SOURCE as usize / part.len() - 8));
        let begun = Instant::now();
        assert!(template(&source).is_err(), "{part}");
        assert!(begun.elapsed().as_millis() < 4000, "{part}: {:?}", begun.elapsed());
    }
    let long = "x".repeat(MAX_SOURCE as usize + 1);
    assert!(template(&long).is_err());
}

/// Expressions of chat templates, as transformers' Jinja evaluates them: scripts/fixtures/jinja.py.
#[test]
fn expressions_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jinja.json");
    let fixture: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let messages: Vec<Message> = serde_json::from_value(fixture["messages"].clone()).unwrap();
    let mut wrong = Vec::new();
    for case in fixture["cases"].as_array().unwrap() {
        let source = case["source"].as_str().unwrap();
        let made = template(source).and_then(|mut template| {
            (template.bos, template.eos) = ("<s>".into(), "</s>".into());
            template.render(&messages, false)
        });
        let made = made.map_err(|error| error.to_string());
        match (&made, case["text"].as_str()) {
            (Ok(made), Some(text)) if made == text => {}
            (Err(_), None) => {}
            _ => wrong.push(format!("{source}\n  ours   {made:?}\n  theirs {:?}", case["text"])),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
