//! Unit tests of the chat templates: dialect, sandbox and refusals.

use std::time::SystemTime;

use serde_json::json;

use super::*;

fn named() -> BTreeMap<String, String> {
    [("bos_token", "<s>"), ("eos_token", "</s>")]
        .map(|(name, token)| (name.to_string(), token.to_string()))
        .into()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &named()).unwrap()
}

fn message(role: &str, content: Content) -> Message {
    Message { role: role.into(), content, fields: Map::new() }
}

fn user(text: &str) -> Vec<Message> {
    vec![message("user", Content::Text(text.into()))]
}

fn chat(messages: &[Message]) -> Chat<'_> {
    static NONE: std::sync::LazyLock<Map<String, Json>> = std::sync::LazyLock::new(Map::new);
    Chat {
        messages,
        add_generation_prompt: false,
        continue_final_message: false,
        tools: None,
        kwargs: &NONE,
        now: SystemTime::UNIX_EPOCH,
    }
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    template(source).render(&chat(messages))
}

fn of_names(templates: &[(&str, &str)]) -> Result<ChatTemplate, TemplateError> {
    let named = |(name, source): &(&str, &str)| (name.to_string(), source.to_string());
    let templates = templates.iter().map(named).collect();
    let sources = TemplateSources { templates, named_tokens: self::named() };
    ChatTemplate::with_limits(sources, &Rendering::Here, TemplateLimits::default())
}

/// A template that does this for an empty message only, which no load renders.
fn for_users(source: &str) -> String {
    format!("{{% if messages[0].content == '' %}}{source}{{% endif %}}")
}

fn too_much(bound: Bound) -> Result<String, TemplateError> {
    Err(TemplateError::TooMuch(bound))
}

#[test]
fn the_dialect_is_that_of_transformers() {
    let source = "{%- for m in messages %}\n    {% if true %}\n[{{ m.role }}]{{ m['content'] }}\n    \
                  {% endif %}\n{%- endfor %}\n{{ bos_token ~ eos_token }}{{ none }}{{ true }}\n";
    assert_eq!(render(source, &user("é<&")).unwrap(), "[user]é<&\n<s></s>NoneTrue");
    let source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}\
                  {{ m.content.split('</think>')[-1].strip() }}{% endfor %}";
    assert_eq!(render(source, &user("a</think> b ")).unwrap(), "b");
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &[]).unwrap(), "01 Jan 1970");
    let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}\n\
                  {% endfor %}";
    assert_eq!(render(source, &user("x")).unwrap(), "x");
}

#[test]
fn raise_exception_reaches_the_client_in_its_own_words() {
    let source =
        "{% macro f() %}{{ raise_exception('Roles ' ~ 'alternate') }}{% endmacro %}{{ f() }}";
    assert_eq!(render(source, &[]), Err(TemplateError::Raised("Roles alternate".into())));
    let error = render("{{ messages[0].nothing.more }}", &user("secret")).unwrap_err();
    assert!(matches!(error, TemplateError::Unfit(_)));
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn work_text_and_recursion_are_bounded() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert_eq!(render(&for_users(endless), &user("")), too_much(Bound::Instructions));
    let large = "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
    assert_eq!(render(&for_users(large), &user("")), too_much(Bound::Text));
    // What is too much for one word is no template.
    for (source, bound) in [(endless, "instructions"), (large, "text")] {
        let damaged = format!("one word takes more than the allowed {bound}");
        let refused = ChatTemplate::new(source, &named()).map(drop);
        assert_eq!(refused, Err(TemplateError::Damaged(damaged)));
    }
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep, &[]), Err(TemplateError::Unfit(_))));
    assert!(render("{% include 'Cargo.toml' %}", &[]).is_err());
}

#[test]
fn a_panic_of_the_interpreter_is_an_error_of_the_chat() {
    let source = "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}";
    assert_eq!(render(source, &user("a")).unwrap(), "a");
    assert!(matches!(render(source, &[]), Err(TemplateError::Unfit(_))));
}

#[test]
fn a_template_that_does_not_parse_is_refused_at_load() {
    let error = ChatTemplate::new("a\n{% for %}", &named()).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    for source in ["{%}", "a {%} {% generation %}", "{%", "{%%}"] {
        assert!(ChatTemplate::new(source, &named()).is_err(), "{source}");
    }
    let error = of_names(&[("a", ""), ("b", "")]);
    assert!(error.unwrap_err().to_string().contains("default"));
}

#[test]
fn tools_choose_their_own_template() {
    let template = of_names(&[("default", "plain"), ("tool_use", "{{ tools|tojson }}")]).unwrap();
    assert_eq!(template.render(&chat(&[])).unwrap(), "plain");
    let tools = json!([1, 2]);
    assert_eq!(template.render(&Chat { tools: Some(&tools), ..chat(&[]) }).unwrap(), "[1, 2]");
}

#[test]
fn arguments_cannot_replace_what_is_ours() {
    let template = template("{{ mood }}{{ messages|length }}");
    for key in ["messages", "chat_template", "bos_token", "raise_exception", "tools"] {
        let kwargs = Map::from_iter([(key.to_string(), json!("x"))]);
        let refused = template.render(&Chat { kwargs: &kwargs, ..chat(&[]) });
        assert_eq!(refused, Err(TemplateError::ReservedKwarg(key.into())));
    }
    let kwargs = Map::from_iter([("mood".to_string(), json!("calm"))]);
    assert_eq!(template.render(&Chat { kwargs: &kwargs, ..chat(&[]) }).unwrap(), "calm0");
}

#[test]
fn content_comes_in_the_shape_that_the_template_takes() {
    let parts = [message("user", Content::Parts(vec!["a".into(), "b".into()]))];
    let text = "{% for m in messages %}{{ m.content }}{% endfor %}";
    assert_eq!(render(text, &parts).unwrap(), "a\nb");
    let list =
        "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}";
    assert_eq!(render(list, &parts).unwrap(), "<a><b>");
    assert_eq!(render(list, &user("c")).unwrap(), "<c>");
    let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                {% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}";
    assert_eq!(render(both, &parts).unwrap(), "<a><b>");
    assert_eq!(render(both, &user("c")).unwrap(), "c");
    let absent = "{% for m in messages %}{{ 'content' in m }}{% endfor %}";
    assert_eq!(render(absent, &[message("user", Content::None)]).unwrap(), "False");
}

#[test]
fn the_final_message_is_continued_where_it_ends() {
    let keeps = template("{% for m in messages %}[{{ m.content }}]{% endfor %}");
    let trims = template("{% for m in messages %}[{{ m.content|trim }}]{% endfor %}");
    let continued = |template: &ChatTemplate, messages: &[Message]| {
        template.render(&Chat { continue_final_message: true, ..chat(messages) })
    };
    assert_eq!(continued(&keeps, &user(" so ")).unwrap(), "[ so ");
    assert_eq!(continued(&trims, &user(" so ")).unwrap(), "[so");
    let two = [user("so"), user("so")].concat();
    assert_eq!(continued(&keeps, &two).unwrap(), "[so][so");
    assert_eq!(continued(&keeps, &[]), Err(TemplateError::NothingToContinue));
    assert_eq!(continued(&template("-"), &user("a")), Err(TemplateError::NothingToContinue));
    let both = Chat { continue_final_message: true, add_generation_prompt: true, ..chat(&two) };
    assert_eq!(keeps.render(&both), Err(TemplateError::TwoEndings));
}
