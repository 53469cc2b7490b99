//! Chat templates: small ones made here, and real ones against transformers.
use super::Outcome;
use crate::common::files::{assert_says, message, real, report};
use secateur::ModelSource;
use secateur::engine::{LoadOptions, PreparedModel, Prompt};
use secateur::expert::probe::PromptThinking;
use secateur::expert::text::{
    CallFormat, ChatTemplate, Marked, Message, RenderOptions, ThinkingState, Tokenizer, thinking_state,
};
use secateur::{Error, ErrorKind};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

fn template_source(config: Value, file: Option<&str>) -> ModelSource {
    let mut files = vec![("tokenizer_config.json", config.to_string().into_bytes())];
    files.extend(file.map(|file| ("chat_template.jinja", file.as_bytes().to_vec())));
    ModelSource::memory(files)
}

fn render(template: &ChatTemplate) -> Result<String, Error> {
    template.render(&[Message::user("hi")], &RenderOptions::default()).map(|prompt| prompt.text)
}

#[test]
fn templates_are_found_where_models_keep_them() -> Outcome {
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}"}]);
    for (config, file, expected) in [
        (json!({"chat_template": "C{{ messages[0].content }}"}), None, "Chi"),
        (json!({"chat_template": named, "bos_token": "<s>"}), None, "D<s>"),
        (json!({"chat_template": "C"}), Some("F{{ eos_token }}"), "F"),
        (json!({"eos_token": {"content": "</s>", "lstrip": false}}), Some("F{{ eos_token }}\n"), "F</s>"),
        (json!({"bos_token": null}), Some("[{{ bos_token }}]"), "[]"),
    ] {
        assert_eq!(render(&ChatTemplate::load(&template_source(config, file))?)?, expected);
    }
    let only_file = ModelSource::memory([
        ("chat_template.jinja", b"{{ bos_token }}".to_vec()),
        ("special_tokens_map.json", br#"{"bos_token": {"content": "<b>"}}"#.to_vec()),
    ]);
    assert_eq!(render(&ChatTemplate::load(&only_file)?)?, "<b>");
    Ok(())
}

#[test]
fn templates_that_fail_or_refuse_say_so() -> Outcome {
    for (config, file, parts) in [
        (json!({}), None, vec!["no chat template", "chat_template.jinja", "`raw`"]),
        (json!({"chat_template": null}), None, vec!["no chat template"]),
        (json!({"chat_template": 3}), None, vec!["chat template is malformed", "3"]),
        (json!({"chat_template": [{"name": "rag", "template": "x"}]}), None, vec!["malformed", "named: rag"]),
        (json!([1]), None, vec!["tokenizer_config.json is not a JSON object"]),
        (json!({}), Some("{% if %}"), vec!["chat template is malformed", "chat_template.jinja", "syntax error"]),
        (json!({}), Some("{{ x | nothing }}"), vec!["unknown filter", "nothing"]),
        (json!({}), Some("{{ nothing.at.all }}"), vec!["the chat template fails", "undefined", "`raw`"]),
        (
            json!({}),
            Some("{{ strftime_now('%Q') }}"),
            vec!["the chat template fails", "does not know the conversion %Q"],
        ),
    ] {
        let rendered = ChatTemplate::load(&template_source(config, file)).and_then(|template| render(&template));
        assert_says(&message(rendered), &parts);
    }
    let refusing = "{% for m in messages %}{{ raise_exception('Only {} roles, please'.format(2)) }}{% endfor %}";
    let error = render(&ChatTemplate::new(refusing, "here", Map::new())?).err().ok_or("it raised")?;
    assert_eq!(error.kind(), ErrorKind::Input);
    assert_says(&error.to_string(), &["the chat template refuses these messages", "here", "Only 2 roles, please"]);
    assert!(!error.to_string().contains("raise_exception"));
    Ok(())
}

#[test]
fn jinja_behaves_as_in_transformers() -> Outcome {
    // The expected texts are those of Python's jinja2 with the settings of transformers.
    for (template, expected) in [
        ("{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\nb\n", "a\nb"),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% set ns = namespace(n=0) %}{% for i in [1,2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ ' a<b '.strip() ~ 'xyx'.strip('x') ~ 'a,b'.split(',')[-1] ~ 'AB'.lower() ~ 'ab'.upper() }}", "a<bybabAB"),
        ("{{ 'abc'.startswith('ab') }} {{ none }} {{ 'abc'[1:] }} {{ messages[::-1] | length }}", "True None bc 1"),
        ("{{ {'a': 1}.get('b', 2) }}{% for k, v in {'z': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "2z1a2"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('&') }}{{ '<&>' }}", "<&><&>"),
        ("{{ missing }}{{ missing is defined }}{{ tools is none }}", "FalseTrue"),
        ("{{ messages[0].content is string }}{{ messages is iterable }}{{ messages[0] is mapping }}", "TrueTrueTrue"),
        ("{{ 'a\\nb' | trim | replace('a', 'c') }}{{ 'x' | capitalize }}", "c\nbX"),
        (
            "{{ 'user: hi'.removeprefix('user: ') }}{{ 'a.txt'.removesuffix('.txt') }}{{ 'a'.removesuffix('b') }}",
            "hiaa",
        ),
        ("{{ 'a/b/c'.rsplit('/', 1) | join('|') }}{{ ' a  b c '.rsplit(none, 1) | join('|') }}", "a/b|c a  b|c"),
        ("{{ 'a b'.rsplit() | join('+') }}{{ '</think>x'.split('</think>', 1)[1] }}", "a+bx"),
        ("{{ 'k=v=w'.partition('=') | join('|') }} {{ 'k=v=w'.rpartition('=') | join('|') }}", "k|=|v=w k=v|=|w"),
        ("{{ 'none'.partition('=')[0] }}{{ 'none'.rpartition('=')[2] }}", "nonenone"),
        ("{{ 'héllo'.index('l') }}{{ 'hello'.rindex('l') }}{{ [4, 5].index(5) }}", "231"),
        (
            "{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} [{{ 'ab'.center(5, '*') }}] [{{ 'a'.ljust(3) }}{{ 'b'.rjust(3) }}]",
            "007 -007 [**ab*] [a    b]",
        ),
        (
            "{{ 'aBc'.swapcase() }}{{ 'Straße'.casefold() }}{{ '12'.isdecimal() }}{{ 'Ab Cd'.istitle() }}",
            "AbCstrasseTrueTrue",
        ),
        (
            "{{ none is iterable }} {{ 'a' is iterable }} {{ nothing is iterable }} {{ 3 is iterable }}",
            "False True True False",
        ),
        ("[{{ 'a\\tb\\n\\tc'.expandtabs(4) }}]", "[a   b\n    c]"),
    ] {
        assert_eq!(render(&ChatTemplate::new(template, "here", Map::new())?)?, expected, "{template}");
    }
    Ok(())
}

/// What templates may do with values, in Python's forms. The expected texts are those of jinja2 3.1.6 with the filter
/// `tojson` of transformers, which calls `json.dumps`.
#[test]
fn values_are_formatted_as_in_python() -> Outcome {
    for (template, expected) in [
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson }}",
            "{\"b\": [1, 2.5, true, null], \"a\": {\"z\": \"é\\n\\\"\\\\\", \"c\": []}, \"ü\": {}, \"B\": \"😀\u{7f}<&>\"}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(sort_keys=true) }}",
            "{\"B\": \"😀\u{7f}<&>\", \"a\": {\"c\": [], \"z\": \"é\\n\\\"\\\\\"}, \"b\": [1, 2.5, true, null], \"ü\": {}}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(ensure_ascii=true) }}",
            "{\"b\": [1, 2.5, true, null], \"a\": {\"z\": \"\\u00e9\\n\\\"\\\\\", \"c\": []}, \"\\u00fc\": {}, \"B\": \"\\ud83d\\ude00\\u007f<&>\"}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"a\": {\n    \"z\": \"é\\n\\\"\\\\\",\n    \"c\": []\n  },\n  \"ü\": {},\n  \"B\": \"😀\u{7f}<&>\"\n}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(true, 1, none, true) }}",
            "{\n \"B\": \"\\ud83d\\ude00\\u007f<&>\",\n \"a\": {\n  \"c\": [],\n  \"z\": \"\\u00e9\\n\\\"\\\\\"\n },\n \"b\": [\n  1,\n  2.5,\n  true,\n  null\n ],\n \"\\u00fc\": {}\n}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(indent='--', sort_keys=true) }}",
            "{\n--\"B\": \"😀\u{7f}<&>\",\n--\"a\": {\n----\"c\": [],\n----\"z\": \"é\\n\\\"\\\\\"\n--},\n--\"b\": [\n----1,\n----2.5,\n----true,\n----null\n--],\n--\"ü\": {}\n}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(separators=(',', ':')) }}",
            "{\"b\":[1,2.5,true,null],\"a\":{\"z\":\"é\\n\\\"\\\\\",\"c\":[]},\"ü\":{},\"B\":\"😀\u{7f}<&>\"}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(separators=(' ;', '='), indent=0) }}",
            "{\n\"b\"=[\n1 ;\n2.5 ;\ntrue ;\nnull\n] ;\n\"a\"={\n\"z\"=\"é\\n\\\"\\\\\" ;\n\"c\"=[]\n} ;\n\"ü\"={} ;\n\"B\"=\"😀\u{7f}<&>\"\n}",
        ),
        (
            "{% set v = {'b': [1, 2.5, true, none], 'a': {'z': 'é\\n\"\\\\', 'c': []}, 'ü': {}, 'B': '😀\\x7f<&>'} %}{{ v | tojson(indent=none, ensure_ascii=false, sort_keys=false) }}",
            "{\"b\": [1, 2.5, true, null], \"a\": {\"z\": \"é\\n\\\"\\\\\", \"c\": []}, \"ü\": {}, \"B\": \"😀\u{7f}<&>\"}",
        ),
        (
            "{{ {2: 'b', 1: 'a'} | tojson(sort_keys=true) }}{{ {true: 1, none: 2, 1.5: 3} | tojson }}",
            "{\"1\": \"a\", \"2\": \"b\"}{\"true\": 1, \"null\": 2, \"1.5\": 3}",
        ),
        (
            "{{ [1e16, 1e-5, 0.1, 1.0, -0.0, 123456789012345678901234567890, 1e22, 1.5e300] | tojson }}",
            "[1e+16, 1e-05, 0.1, 1.0, -0.0, 123456789012345678901234567890, 1e+22, 1.5e+300]",
        ),
        (
            "{{ 'a\\x01\\b\\f\\u2028' | tojson }}{{ 'x' | tojson(indent=4) }}{{ [] | tojson(indent=4) }}{{ {} | tojson(indent=4) }}",
            "\"a\\u0001\\b\\f\u{2028}\"\"x\"[]{}",
        ),
        (
            "{{ [[1, [2]], {'k': [3]}] | tojson(indent=3) }}",
            "[\n   [\n      1,\n      [\n         2\n      ]\n   ],\n   {\n      \"k\": [\n         3\n      ]\n   }\n]",
        ),
        ("{{ (1, 'a') | tojson }}{{ 3 | tojson }}{{ none | tojson }}{{ false | tojson }}", "[1, \"a\"]3nullfalse"),
        (
            "{{ '%s' % 'x' }}|{{ '%s and %s' % ('a', 1) }}|{{ '%d%%' % 5 }}|{{ '%5d|%-5d|%05d|%+d' % (42, 42, 42, 42) }}",
            "x|a and 1|5%|   42|42   |00042|+42",
        ),
        (
            "{{ '%.2f|%8.3f|%f|%-8.1f|' % (3.14159, 2.71828, 1, 2.25) }}|{{ '%5s|%-5s|%.2s' % ('ab', 'ab', 'abcdef') }}",
            "3.14|   2.718|1.000000|2.2     ||   ab|ab   |ab",
        ),
        (
            "{{ '%(a)s is %(b)d' % {'a': 'A', 'b': 7} }}|{{ '%s' % none }}|{{ '%s' % true }}|{{ '%s' % 1.5 }}|{{ '%x %X %o %e' % (255, 255, 8, 12345.678) }}",
            "A is 7|None|True|1.5|ff FF 10 1.234568e+04",
        ),
        (
            "{{ '%s' % messages[0].content | upper }}|{{ '<%s>' % messages[0]['role'] ~ '!' }}|{{ ('%s' % 'a') ~ '%s' % 'b' }}",
            "HI|<user>!|ab",
        ),
        (
            "{% set n = 7 %}{% if '%d' % n == '7' %}seven{% endif %}{{ n % 4 }}{{ '%c' % 'z' }}{{ '%i' % 3 }}{{ '%s' % [1, 'a'] }}{{ '%s' % nothing }}",
            "seven3z3[1, 'a']",
        ),
        (
            "{{ '%s' % ('%s' % 'in') }}|{{ '%d' % 2 ** 3 }}|{{ '%d' % -3 }}|{{ 'é%sü' % 'ö' }}|{{ '100%' }}|{{ '%s' % (1,) }}",
            "in|8|-3|éöü|100%|1",
        ),
        ("{% raw %}{{ '%s' % x }}{% endraw %}{# '%s' % y #} '%s' % z", "{{ '%s' % x }} '%s' % z"),
        (
            "{{ 'one two, three_4 five-six' | wordcount }}{{ '' | wordcount }}{{ 'é à' | wordcount }}{{ '日本語 text' | wordcount }}{{ 42 | wordcount }}",
            "50221",
        ),
        (
            "{{ 'foo bar baz qux' | truncate(9) }}|{{ 'foo bar baz qux' | truncate(9, true) }}|{{ 'foo bar baz qux' | truncate(11) }}|{{ 'foo bar baz qux' | truncate(11, false, '...', 0) }}",
            "foo...|foo ba...|foo bar baz qux|foo bar...",
        ),
        (
            "{{ 'ééé ééé ééé' | truncate(6, leeway=0, end='…') }}|{{ 'abcdefghij' | truncate(5, leeway=0) }}|{{ 'abcdefghij' | truncate(length=4, killwords=true, end='', leeway=0) }}|{{ 'a' | truncate }}",
            "ééé…|ab...|abcd|a",
        ),
        (
            "{{ 1 | filesizeformat }}|{{ 0 | filesizeformat }}|{{ 999 | filesizeformat }}|{{ 1000 | filesizeformat }}|{{ 123456789 | filesizeformat }}|{{ 13000 | filesizeformat(true) }}|{{ 1.5e30 | filesizeformat }}|{{ '2500' | filesizeformat(binary=true) }}|{{ 12.7 | filesizeformat }}",
            "1 Byte|0 Bytes|999 Bytes|1.0 kB|123.5 MB|12.7 KiB|1500000.0 YB|2.4 KiB|12 Bytes",
        ),
        (
            "{% set c = cycler('a', 'b', 3) %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{% set x = c.reset() %}{{ c.next() }}",
            "ab33aa",
        ),
        (
            "{% set j = joiner() %}{% for x in [1, 2, 3] %}{{ j() }}{{ x }}{% endfor %}|{% set p = joiner('|') %}{{ p() }}a{{ p() }}b|{% set q = joiner(sep='-') %}{{ q() }}{{ q() }}",
            "1, 2, 3|a|b|-",
        ),
    ] {
        assert_eq!(render(&ChatTemplate::new(template, "here", Map::new())?)?, expected, "{template}");
    }
    // What Python refuses, or what is not there, is an error and never another prompt.
    for template in [
        "{{ nothing | tojson }}",
        "{{ {1: 1, 'a': 2} | tojson(sort_keys=true) }}",
        "{{ 1 | tojson(0, 1, none, 1, 5) }}",
        "{{ '%s' % ('a', 'b') }}",
        "{{ '%s %s' % 'a' }}",
        "{{ '%d' % 'a' }}",
        "{{ 'x' % 'a' }}",
        "{{ 'abcdef' | truncate(2, leeway=0) }}",
        "{{ none | truncate }}",
        "{{ cycler() }}",
        "{{ 'x' | tojson(color=1) }}",
        // These work in Python.
        "{{ '%d' % 3.7 }}",
        "{% set format = '%s' %}{{ format % 1 }}",
        "{{ 'a b' | wordwrap(1) }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ '<a>' | striptags }}",
    ] {
        let rendered = ChatTemplate::new(template, "here", Map::new()).and_then(|template| render(&template));
        assert_eq!(rendered.as_ref().map_err(Error::kind), Err(ErrorKind::Model), "{template}");
    }
    Ok(())
}

/// Some templates open the thinking even if they are not asked for a generation prompt.
#[test]
fn thinking_that_is_always_open_is_seen() -> Outcome {
    let always = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}A:<think>\n";
    let template = ChatTemplate::new(always, "here", Map::new())?;
    for text in ["hi", " what is </think>? ", "<think>"] {
        let prompt = template.render(&[Message::user(text)], &RenderOptions::default())?;
        assert_eq!(prompt.thinking, ThinkingState::Open, "{text}");
        assert_eq!(&prompt.text[prompt.generation_start..].trim_start(), &"</user>A:<think>", "{text}");
    }
    let never = ChatTemplate::new("{{ messages[0].content }}:", "here", Map::new())?;
    let prompt = never.render(&[Message::user("what is <think>?")], &RenderOptions::default())?;
    assert_eq!(prompt.thinking, ThinkingState::None);
    Ok(())
}

#[test]
fn thinking_is_open_closed_or_neither() -> Outcome {
    for (text, expected) in [
        ("", ThinkingState::None),
        ("<|im_start|>assistant\n", ThinkingState::None),
        ("<|im_start|>assistant\n<think>\n", ThinkingState::Open),
        ("<think>\n\n</think>\n\n", ThinkingState::Closed),
        ("<think>a</think>b<think>", ThinkingState::Open),
        ("</think>", ThinkingState::Closed),
    ] {
        assert_eq!(thinking_state(text), expected, "{text:?}");
    }
    // Tags in the user's message do not open the thinking.
    let template =
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}A:{{ tag }}{% endif %}";
    let template = ChatTemplate::new(template, "here", Map::new())?;
    for (tag, expected) in
        [("", ThinkingState::None), ("<think>", ThinkingState::Open), ("<think></think>", ThinkingState::Closed)]
    {
        let options = RenderOptions { extra: Map::from_iter([("tag".into(), json!(tag))]), ..Default::default() };
        let prompt = template.render(&[Message::user("what is <think>?")], &options)?;
        assert_eq!((prompt.thinking, &prompt.text[prompt.generation_start..]), (expected, &*format!("A:{tag}")));
    }
    Ok(())
}

/// For each template and case, the length and the FNV-1a hash of the text that transformers 5.23 renders; both are 0
/// where Python refuses. `tests/fixtures/chat_templates.py`, which has the same cases, printed these lines.
#[rustfmt::skip]
const RENDERED: [(&str, &str, usize, u64); 96] = [
    ("chat-templates/Qwen-QwQ-32B.jinja", "user", 72, 0xf3c1c79ad03fab86),
    ("chat-templates/Qwen-QwQ-32B.jinja", "system", 123, 0x955746f5b992a684),
    ("chat-templates/Qwen-QwQ-32B.jinja", "turns", 124, 0xa5ab8744a4239786),
    ("chat-templates/Qwen-QwQ-32B.jinja", "chat", 251, 0xd6c1752ae5e30a56),
    ("chat-templates/Qwen-QwQ-32B.jinja", "thinking", 59, 0xa4298d6167d7fcc9),
    ("chat-templates/Qwen-QwQ-32B.jinja", "no thinking", 59, 0xa4298d6167d7fcc9),
    ("chat-templates/Qwen-QwQ-32B.jinja", "chat, thinking", 251, 0xd6c1752ae5e30a56),
    ("chat-templates/Qwen-QwQ-32B.jinja", "chat, no thinking", 251, 0xd6c1752ae5e30a56),
    ("chat-templates/Qwen-QwQ-32B.jinja", "turns, no thinking", 124, 0xa5ab8744a4239786),
    ("chat-templates/Qwen-QwQ-32B.jinja", "tools", 676, 0xb56bc6fd0fadf591),
    ("chat-templates/Qwen-QwQ-32B.jinja", "tool call", 882, 0x949e757e7d0b137d),
    ("chat-templates/Qwen-QwQ-32B.jinja", "null call", 0, 0), // refused: UndefinedError: 'None' has no attribute 'split'
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "user", 162, 0x0496529834f323d2),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "system", 115, 0x4cd88b0c9bc7f338),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "turns", 235, 0xea4cb051aa54a560),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "chat", 243, 0xc4d85958b64022b2),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "thinking", 149, 0xcbec8453c2797565),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "no thinking", 149, 0xcbec8453c2797565),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "chat, thinking", 243, 0xc4d85958b64022b2),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "chat, no thinking", 243, 0xc4d85958b64022b2),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "turns, no thinking", 235, 0xea4cb051aa54a560),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "tools", 736, 0x5f9a436ffe2817e1),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "tool call", 874, 0xd6470e9ed537e439),
    ("chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja", "null call", 313, 0xfed68056b012e3df),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "user", 64, 0xe898dfd5270eeac2),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "system", 115, 0x4cd88b0c9bc7f338),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "turns", 116, 0xeca3647cbfed56c2),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "chat", 243, 0xc4d85958b64022b2),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "thinking", 51, 0x8414af42468e3555),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "no thinking", 70, 0xad5044c24def1686),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "chat, thinking", 243, 0xc4d85958b64022b2),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "chat, no thinking", 262, 0x5958a79d463d900f),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "turns, no thinking", 135, 0xdc6a22405109553f),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "tools", 666, 0xd12552f3c5158bad),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "tool call", 874, 0xd6470e9ed537e439),
    ("chat-templates/Qwen-Qwen3-0.6B.jinja", "null call", 0, 0), // refused: TypeError: argument of type 'NoneType' is not iterable
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "user", 56, 0x90197ded3e41ea7e),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "system", 77, 0x1f9efdf5119a2f84),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "turns", 105, 0x571cbe4a3ca052d9),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "chat", 195, 0xd6a111bee216cd24),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "thinking", 43, 0x5f2a2e6506ac1e93),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "no thinking", 43, 0x5f2a2e6506ac1e93),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "chat, thinking", 195, 0xd6a111bee216cd24),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "chat, no thinking", 195, 0xd6a111bee216cd24),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "turns, no thinking", 105, 0x571cbe4a3ca052d9),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "tools", 43, 0x5f2a2e6506ac1e93),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "tool call", 238, 0x62fe370d8b34f279),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "null call", 282, 0xb7a5c6a17b4a50d2),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "user", 56, 0x90197ded3e41ea7e),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "system", 77, 0x1f9efdf5119a2f84),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "turns", 105, 0x571cbe4a3ca052d9),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "chat", 195, 0xd6a111bee216cd24),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "thinking", 43, 0x5f2a2e6506ac1e93),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "no thinking", 43, 0x5f2a2e6506ac1e93),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "chat, thinking", 195, 0xd6a111bee216cd24),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "chat, no thinking", 195, 0xd6a111bee216cd24),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "turns, no thinking", 105, 0x571cbe4a3ca052d9),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "tools", 43, 0x5f2a2e6506ac1e93),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "tool call", 238, 0x62fe370d8b34f279),
    ("chat-templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "null call", 282, 0xb7a5c6a17b4a50d2),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "user", 56, 0x90197ded3e41ea7e),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "system", 77, 0x1f9efdf5119a2f84),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "turns", 105, 0x571cbe4a3ca052d9),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "chat", 195, 0xd6a111bee216cd24),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "thinking", 43, 0x5f2a2e6506ac1e93),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "no thinking", 43, 0x5f2a2e6506ac1e93),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "chat, thinking", 195, 0xd6a111bee216cd24),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "chat, no thinking", 195, 0xd6a111bee216cd24),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "turns, no thinking", 105, 0x571cbe4a3ca052d9),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "tools", 43, 0x5f2a2e6506ac1e93),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "tool call", 238, 0x62fe370d8b34f279),
    ("tokenizer-r1-distill-qwen/chat_template.jinja", "null call", 282, 0xb7a5c6a17b4a50d2),
    ("tokenizer-qwen2.5/tokenizer_config.json", "user", 162, 0x0496529834f323d2),
    ("tokenizer-qwen2.5/tokenizer_config.json", "system", 115, 0x4cd88b0c9bc7f338),
    ("tokenizer-qwen2.5/tokenizer_config.json", "turns", 235, 0xea4cb051aa54a560),
    ("tokenizer-qwen2.5/tokenizer_config.json", "chat", 243, 0xc4d85958b64022b2),
    ("tokenizer-qwen2.5/tokenizer_config.json", "thinking", 149, 0xcbec8453c2797565),
    ("tokenizer-qwen2.5/tokenizer_config.json", "no thinking", 149, 0xcbec8453c2797565),
    ("tokenizer-qwen2.5/tokenizer_config.json", "chat, thinking", 243, 0xc4d85958b64022b2),
    ("tokenizer-qwen2.5/tokenizer_config.json", "chat, no thinking", 243, 0xc4d85958b64022b2),
    ("tokenizer-qwen2.5/tokenizer_config.json", "turns, no thinking", 235, 0xea4cb051aa54a560),
    ("tokenizer-qwen2.5/tokenizer_config.json", "tools", 736, 0x5f9a436ffe2817e1),
    ("tokenizer-qwen2.5/tokenizer_config.json", "tool call", 874, 0xd6470e9ed537e439),
    ("tokenizer-qwen2.5/tokenizer_config.json", "null call", 313, 0xfed68056b012e3df),
    ("tokenizer-qwen3/tokenizer_config.json", "user", 64, 0xe898dfd5270eeac2),
    ("tokenizer-qwen3/tokenizer_config.json", "system", 115, 0x4cd88b0c9bc7f338),
    ("tokenizer-qwen3/tokenizer_config.json", "turns", 116, 0xeca3647cbfed56c2),
    ("tokenizer-qwen3/tokenizer_config.json", "chat", 243, 0xc4d85958b64022b2),
    ("tokenizer-qwen3/tokenizer_config.json", "thinking", 51, 0x8414af42468e3555),
    ("tokenizer-qwen3/tokenizer_config.json", "no thinking", 70, 0xad5044c24def1686),
    ("tokenizer-qwen3/tokenizer_config.json", "chat, thinking", 243, 0xc4d85958b64022b2),
    ("tokenizer-qwen3/tokenizer_config.json", "chat, no thinking", 262, 0x5958a79d463d900f),
    ("tokenizer-qwen3/tokenizer_config.json", "turns, no thinking", 135, 0xdc6a22405109553f),
    ("tokenizer-qwen3/tokenizer_config.json", "tools", 666, 0xd12552f3c5158bad),
    ("tokenizer-qwen3/tokenizer_config.json", "tool call", 874, 0xd6470e9ed537e439),
    ("tokenizer-qwen3/tokenizer_config.json", "null call", 0, 0), // refused: TypeError: argument of type 'NoneType' is not iterable
];

fn case(name: &str) -> Option<(Vec<Message>, RenderOptions)> {
    let tool = json!({"type": "function", "function": {"name": "add", "description": "a < b & 'c' → \"d\"", "parameters": {
        "type": "object", "properties": {"x": {"type": "number"}, "a": {"type": "number"}}, "required": ["x", "a"]}}});
    let call = json!({"type": "function", "function": {"name": "add", "arguments": {"x": 1, "a": 2.5}}});
    let text_call = json!({"type": "function", "function": {"name": "add", "arguments": "{\"x\": 1}"}});
    let tools = RenderOptions { tools: Some(json!([tool])), ..Default::default() };
    let calling = |call: &Value| Map::from_iter([("tool_calls".to_string(), json!([call]))]);
    let say = Message::new;
    let think = |yes| RenderOptions { enable_thinking: Some(yes), ..Default::default() };
    let turns = || vec![say("user", "1"), say("assistant", "<think>\nhm\n</think>\n\none"), say("user", "2")];
    // As in a chat, earlier answers come without their thinking.
    let chat = || {
        let (hi, sum) = (
            [say("user", "Hi\n\nthere "), say("assistant", "Hello 🦙")],
            [say("user", "2 + 2?"), say("assistant", "4")],
        );
        [say("system", "Be brief.")].into_iter().chain(hi).chain(sum).chain([say("user", "Sure?")]).collect::<Vec<_>>()
    };
    Some(match name {
        "user" => (vec![say("user", "What is 2 + 2?")], RenderOptions::default()),
        "system" => (vec![say("system", "Be brief."), say("user", "Hi, <think> ünïcode 🦙")], RenderOptions::default()),
        "turns" => (turns(), RenderOptions::default()),
        "chat" => (chat(), RenderOptions::default()),
        "thinking" => (vec![say("user", "1")], think(true)),
        "no thinking" => (vec![say("user", "1")], think(false)),
        "chat, thinking" => (chat(), think(true)),
        "chat, no thinking" => (chat(), think(false)),
        "turns, no thinking" => (turns(), think(false)),
        "tools" => (vec![say("user", "1")], tools),
        "tool call" => (
            vec![
                say("system", "S"),
                say("user", "1"),
                Message { extra: calling(&call), ..say("assistant", "") },
                say("tool", "3.5"),
                say("tool", "4"),
            ],
            tools,
        ),
        "null call" => (
            vec![
                say("user", "1"),
                Message { role: "assistant".into(), content: Value::Null, extra: calling(&text_call) },
                say("tool", "3.5"),
            ],
            RenderOptions::default(),
        ),
        _ => return None,
    })
}

fn fnv(data: &[u8]) -> u64 {
    data.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

#[test]
fn real_templates_render_as_in_transformers() -> Outcome {
    if real("chat-templates").is_none() {
        return Ok(());
    }
    let tokens = Map::from_iter([("bos_token".into(), json!("<BOS>")), ("eos_token".into(), json!("<EOS>"))]);
    let (mut ran, mut refused, mut switches) = (0, 0, BTreeMap::new());
    for (name, case_name, len, hash) in RENDERED {
        let Some(path) = real(name) else { continue };
        let text = std::fs::read_to_string(path)?;
        let text = match name.ends_with(".json") {
            true => serde_json::from_str::<Value>(&text)?["chat_template"].as_str().ok_or("a template")?.to_string(),
            false => text,
        };
        let template = ChatTemplate::new(&text, name, tokens.clone())?;
        switches.insert(name, template.has_thinking_switch());
        let (messages, options) = case(case_name).ok_or("a known case")?;
        let rendered = template.render(&messages, &options);
        ran += 1;
        if len == 0 {
            assert_says(&message(rendered), &["the chat template fails", name]);
            refused += 1;
            continue;
        }
        let rendered = rendered?;
        assert_eq!(
            (rendered.text.len(), fnv(rendered.text.as_bytes())),
            (len, hash),
            "{name}, {case_name}:\n{}",
            rendered.text
        );
        let opens = ["QwQ", "DeepSeek-R1", "r1-distill"].iter().any(|model| name.contains(model));
        let expected = match case_name {
            case if name.to_lowercase().contains("qwen3") && case.contains("no thinking") => ThinkingState::Closed,
            // The templates of R1 write no generation prompt after the result of a tool.
            "tool call" | "null call" if !name.contains("QwQ") => ThinkingState::None,
            _ if opens => ThinkingState::Open,
            _ => ThinkingState::None,
        };
        assert_eq!(rendered.thinking, expected, "{name}, {case_name}");
    }
    assert_eq!(ran, RENDERED.len());
    let with: Vec<&str> = switches.iter().filter(|(_, has)| **has).map(|(name, _)| *name).collect();
    assert_eq!(with, ["chat-templates/Qwen-Qwen3-0.6B.jinja", "tokenizer-qwen3/tokenizer_config.json"]);
    report!("ran: {ran} renderings of {} real chat templates, {refused} of them refused as in jinja2", switches.len());
    Ok(())
}

/// Short templates with what those of Qwen3-Coder, Llama 3.2, Mistral Nemo and Ministral 3 use for tools, and what
/// transformers 5.24 renders from them; null where it refuses.
#[test]
fn tools_and_calls_render_as_in_transformers() -> Outcome {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/templates/tools");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}"));
    let expected: BTreeMap<String, Option<String>> = serde_json::from_str(&read("expected.json")?)?;
    let cases: Value = serde_json::from_str(&read("cases.json")?)?;
    let tokens = Map::from_iter([("bos_token".into(), json!("<s>")), ("eos_token".into(), json!("</s>"))]);
    let mut refused = Vec::new();
    for (name, expected) in &expected {
        let [template, chat, tools] = name.split('/').collect::<Vec<_>>()[..] else { return Err(name.as_str().into()) };
        let text = read(&format!("{template}.jinja"))?;
        let template = ChatTemplate::new(&text, name, tokens.clone())?;
        let messages: Vec<Message> = serde_json::from_value(cases["chats"][chat].clone())?;
        let tools = (tools == "tools").then(|| cases["tools"].clone());
        let rendered = template.render(&messages, &RenderOptions { tools, ..RenderOptions::default() });
        match (rendered, expected) {
            (Ok(prompt), Some(expected)) => assert_eq!(prompt.text, *expected, "{name}"),
            (Ok(prompt), None) => panic!("{name} is refused in Python, and gives {}", prompt.text),
            (Err(error), Some(_)) => panic!("{name}: {error}"),
            (Err(_), None) => refused.push(name.as_str()),
        }
    }
    assert_eq!(refused, ["bare/calls/plain", "bare/calls/tools"], "Llama's has no two calls");
    Ok(())
}

/// The form of a model's calls is the form in which its template shows earlier calls.
#[test]
fn templates_tell_the_form_of_calls() -> Outcome {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let of = |text: &str| ChatTemplate::new(text, "here", Map::from_iter([("eos_token".into(), json!("</s>"))]));
    for (name, expected) in [
        ("tools/coder", Some(CallFormat::Xml)),
        ("tools/bare", Some(CallFormat::Bare)),
        ("tools/list", Some(CallFormat::Marked)),
        ("tools/named", Some(CallFormat::Marked)),
        // It describes tools but shows no calls.
        ("smollm3", None),
        ("phi4", None),
    ] {
        let template = of(&std::fs::read_to_string(format!("{fixtures}/templates/{name}.jinja"))?)?;
        assert_eq!((template.call_format(), template.check_tools().is_ok()), (expected, expected.is_some()), "{name}");
    }
    let caller = ChatTemplate::load(&ModelSource::directory(format!("{fixtures}/caller"))?)?;
    assert_eq!(caller.call_format(), Some(CallFormat::Tagged));
    let error = ChatTemplate::load(&secateur::builtin::source())?.check_tools().err().ok_or("it has no tools")?;
    assert_says(&error.to_string(), &["has no tools", "unknown form", "Qwen3", "leave out"]);
    // A template that only describes tools is not enough, nor is one that only shows calls.
    let call = "{% for m in messages %}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}{% endfor %}{% endfor %}";
    for (text, expected) in [
        ("{{ tools | tojson }}", None),
        (call, None),
        (&*format!("{{{{ tools | tojson }}}}{call}"), Some(CallFormat::Tagged)),
    ] {
        assert_eq!(of(text)?.call_format(), expected, "{text}");
    }
    let mut ran = 0;
    for (name, template) in
        templates()?.into_iter().filter(|(name, _)| !name.starts_with("tools/") && name.contains('/'))
    {
        let expected = if name.contains("Qwen3")
            || name.contains("qwen") && !name.contains("r1")
            || name.contains("Qwen2.5")
            || name.contains("QwQ")
        {
            Some(CallFormat::Tagged)
        } else {
            // The templates of R1 show calls, but no tools.
            None
        };
        assert_eq!(template.call_format(), expected, "{name}");
        ran += 1;
    }
    if ran > 0 {
        report!("ran: the form of calls in {ran} real chat templates");
    }
    Ok(())
}

/// The real templates by name, without doubles, and the small ones of models that are not in `../shared`.
fn templates() -> Result<Vec<(String, ChatTemplate)>, super::Failure> {
    let tokens = Map::from_iter([("bos_token".into(), json!("<s>")), ("eos_token".into(), json!("<|im_end|>"))]);
    let mut names: Vec<&str> = RENDERED.iter().map(|(name, ..)| *name).collect();
    names.dedup();
    let mut templates = Vec::new();
    for name in names {
        let Some(path) = real(name) else { continue };
        let text = std::fs::read_to_string(path)?;
        let text = match name.ends_with(".json") {
            true => serde_json::from_str::<Value>(&text)?["chat_template"].as_str().ok_or("a template")?.to_string(),
            false => text,
        };
        templates.push((name.to_string(), ChatTemplate::new(&text, name, tokens.clone())?));
    }
    for name in ["magistral", "phi4", "smollm3", "tools/bare", "tools/coder", "tools/list", "tools/named"] {
        let path = format!("{}/tests/fixtures/templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
        templates.push((name.to_string(), ChatTemplate::new(&std::fs::read_to_string(path)?, name, tokens.clone())?));
    }
    Ok(templates)
}

/// Every added token of a tokenizer, as `tokenizer.json` names them.
fn added_tokens(folder: &std::path::Path) -> Result<Vec<(u32, String)>, super::Failure> {
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json"))?)?;
    let tokens = json["added_tokens"].as_array().ok_or("a list")?;
    let token = |token: &Value| Some((token["id"].as_u64()? as u32, token["content"].as_str()?.to_string()));
    Ok(tokens.iter().filter_map(token).collect())
}

const REAL_TOKENIZERS: [&str; 3] = ["tokenizer-qwen2.5", "tokenizer-qwen3", "tokenizer-r1-distill-qwen"];

/// The ids of ordinary messages are those of the whole rendered text. This also holds if control tokens are given
/// other spellings meanwhile, as for messages that contain some.
#[test]
fn ordinary_messages_have_the_ids_of_the_rendered_text() -> Outcome {
    let names = ["user", "system", "turns", "chat", "thinking", "no thinking", "tools", "tool call", "null call"];
    let mut ran = 0;
    for folder in REAL_TOKENIZERS {
        let Some(path) = real(folder) else { continue };
        let tokenizer = Tokenizer::load(&ModelSource::directory(&path)?)?;
        let hostile = [Message::user("<|im_end|> <|endoftext|> <|User|> <think> [INST] <\u{ff5c}User\u{ff5c}>")];
        let other = Marked::new(tokenizer.controls(), &hostile, &RenderOptions::default());
        assert!(!other.marks.is_empty());
        for (name, template) in templates()? {
            for case_name in names {
                let (mut messages, mut options) = case(case_name).ok_or("a known case")?;
                options.now = Some(0);
                for message in &mut messages {
                    // Only one case has a tag in a user's message.
                    if let (true, Some(text)) = (message.role != "assistant", message.content.as_str()) {
                        message.content = text.replace("<think>", "<thinks>").into();
                    }
                }
                messages.push(Message::user("\n\n x < 3 and a->b;\n  <div>fn main() {}</div>\t\u{3000}🦙 \n"));
                let Ok(whole) = template.render(&messages, &options) else { continue };
                let expected = tokenizer.encode(&whole.text)?;
                let marked = Marked::new(tokenizer.controls(), &messages, &options);
                assert!(marked.marks.is_empty(), "{folder}, {name}, {case_name}");
                let rendered = template.render(&marked.messages, &marked.options)?;
                assert_eq!(rendered, whole);
                assert_eq!(tokenizer.encode_rendered(&rendered.text, &marked.marks)?, expected);
                assert_eq!(tokenizer.encode_rendered(&rendered.text, &other.marks)?, expected, "{name}, {case_name}");
                ran += 1;
            }
        }
    }
    if ran > 0 {
        report!("ran: {ran} ordinary conversations in templates and tokenizers that differ");
    }
    Ok(())
}

/// Whatever a message contains, the only control tokens are those that the template writes around an ordinary
/// message, and the text is unchanged.
#[test]
fn no_control_token_arises_from_what_people_write() -> Outcome {
    let mut ran = 0;
    for folder in REAL_TOKENIZERS {
        let Some(path) = real(folder) else { continue };
        let tokenizer = Tokenizer::load(&ModelSource::directory(&path)?)?;
        let added = added_tokens(&path)?;
        let controls = |text: &str, marked: &Marked| -> Result<(Vec<u32>, Vec<u32>), Error> {
            let ids = tokenizer.encode_rendered(text, &marked.marks)?;
            let is_added = |id: &u32| added.iter().any(|(added, _)| added == id);
            Ok((ids.iter().copied().filter(is_added).collect(), ids))
        };
        for (name, template) in templates()? {
            let described = |text: &str| {
                let parameters = json!({"type": "object", "properties": {text: {"type": "string", "default": [text]}}});
                json!([{"type": "function", "function": {"name": "f", "description": text, "parameters": parameters}}])
            };
            let conversation = |text: &str| {
                let parts = json!([{"type": "text", "text": text}]);
                let mut plain = vec![Message::user(text), Message::new("assistant", "Yes."), Message::user(text)];
                plain.insert(0, Message::new("system", text));
                let listed = Message { content: parts, ..Message::user("") };
                let call = json!({"id": "abcDEF123", "type": "function", "function": {"name": "f", "arguments": {text: [text]}}});
                let extra = Map::from_iter([("tool_calls".to_string(), json!([call]))]);
                let mut result = Message::new("tool", text);
                result.extra.insert("tool_call_id".into(), text.into());
                let called = vec![Message::user(text), Message { extra, ..Message::new("assistant", "") }, result];
                [plain, vec![listed], called]
            };
            let options_of = |which: usize, text: &str| RenderOptions {
                now: Some(0),
                tools: (which == 2).then(|| described(text)),
                ..Default::default()
            };
            for (which, messages) in conversation("X1").into_iter().enumerate() {
                let options = options_of(which, "X1");
                let Ok(neutral) = template.render(&messages, &options) else { continue };
                let marked = Marked::new(tokenizer.controls(), &messages, &options);
                let (expected, _) = controls(&neutral.text, &marked)?;
                let all: String = added.iter().map(|(_, text)| text.as_str()).collect();
                let mut hostile: Vec<String> = added.iter().map(|(_, text)| format!("a {text}b{text}")).collect();
                hostile.extend([all.clone(), format!("<<|im_end|>>{all}"), "x<|im_".into()]);
                for text in hostile {
                    let messages = conversation(&text).into_iter().nth(which).ok_or("three kinds")?;
                    let options = options_of(which, &text);
                    let marked = Marked::new(tokenizer.controls(), &messages, &options);
                    let rendered = template.render(&marked.messages, &marked.options)?;
                    let (found, ids) = controls(&rendered.text, &marked)?;
                    assert_eq!(found, expected, "{folder}, {name}: {text}");
                    assert_eq!(rendered.thinking, neutral.thinking, "{folder}, {name}: {text}");
                    let normal = marked.marks.removed(&rendered.text);
                    assert_eq!(tokenizer.decode(&ids, false)?, normal, "{folder}, {name}");
                    assert_eq!(normal, template.render(&messages, &options)?.text, "{folder}, {name}: {text}");
                    ran += 1;
                }
            }
        }
        // A template may put two parts of a message together.
        let joined = ChatTemplate::new(
            "{% for part in messages[0].content %}{{ part.text | trim }}{% endfor %}",
            "here",
            Map::new(),
        )?;
        let parts = json!([{"type": "text", "text": "a<|im_ \n"}, {"type": "text", "text": "end|>b"}]);
        let messages = [Message { content: parts, ..Message::user("") }];
        let marked = Marked::new(tokenizer.controls(), &messages, &RenderOptions::default());
        let rendered = joined.render(&marked.messages, &marked.options)?;
        let (found, ids) = controls(&rendered.text, &marked)?;
        assert_eq!((found, tokenizer.decode(&ids, false)?), (vec![], "a<|im_end|>b".to_string()));
    }
    if ran > 0 {
        report!("ran: {ran} conversations that spell control tokens");
    }
    Ok(())
}

/// An answer of the assistant may quote its thinking: templates cut it at the tags as before.
#[test]
fn an_assistants_tags_are_seen_by_the_template() -> Outcome {
    let Some(path) = real("tokenizer-qwen3") else { return Ok(()) };
    let source = ModelSource::directory(&path)?;
    let (tokenizer, template) = (Tokenizer::load(&source)?, ChatTemplate::load(&source)?);
    let (messages, options) = case("turns").ok_or("a known case")?;
    let marked = Marked::new(tokenizer.controls(), &messages, &options);
    let rendered = template.render(&marked.messages, &marked.options)?;
    assert_eq!(rendered, template.render(&messages, &options)?);
    assert_eq!(tokenizer.encode_rendered(&rendered.text, &marked.marks)?, tokenizer.encode(&rendered.text)?);
    assert!(!rendered.text.contains("hm"), "the thinking of an earlier turn is dropped");
    report!("ran: tags of an assistant in the template of Qwen3");
    Ok(())
}

/// The same on the small models in the repository, through the only function that encodes prompts.
#[test]
fn prompts_of_small_models_are_encoded_safely() -> Outcome {
    let mut prepared = vec![PreparedModel::new(&secateur::builtin::source(), "built-in", &LoadOptions::default())?];
    for name in ["qwen2-f16", "gguf-qwen3-f16/model.gguf"] {
        let source = ModelSource::open(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR")))?;
        prepared.push(PreparedModel::new(&source, name, &LoadOptions::default())?);
    }
    for model in prepared {
        let (tokenizer, template) = (model.tokenizer()?, model.template()?);
        let question = "Is 2 < 3?";
        let text = template.render(&[Message::user(question)], &RenderOptions::default())?.text;
        let ordinary = model.encoded(&Prompt::Chat(question.into()))?;
        assert_eq!(ordinary.ids, tokenizer.encode(&text)?);
        let count = |ids: &[u32], tag: &str| match tokenizer.encode(tag).as_deref() {
            Ok(&[id]) => ids.iter().filter(|other| **other == id).count(),
            _ => 0,
        };
        for tag in ["</think>", "<think>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"] {
            let hostile = model.encoded(&Prompt::Chat(format!("{question} {tag}{tag}")))?;
            assert_eq!(count(&hostile.ids, tag), count(&ordinary.ids, tag), "{:?}: {tag}", model.config().architecture);
            assert_eq!(hostile.thinking, ordinary.thinking);
            // A raw prompt is encoded unchanged.
            let raw = model.encoded(&Prompt::Raw(format!("a{tag}")))?;
            assert_eq!(raw.ids, tokenizer.encode_whole(&format!("a{tag}"))?);
        }
        // An encoded prompt is not encoded again, and the state of its thinking is taken as it is.
        let given = secateur::Encoded { thinking: PromptThinking::Open, ..ordinary };
        assert_eq!(model.encoded(&Prompt::Encoded(given.clone()))?, given);
    }
    Ok(())
}
