//! Chat templates over small conversations, with fuel.
//!
//! Whatever a template does ends: in a text of bounded length, the same one each time, or in an
//! error that does not count as the template's own damage, which was looked for when it was read.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use pagoda_engine::text::template::{TemplateLimits, TemplateSources};
use pagoda_engine::text::{Chat, ChatTemplate, Content, Message, Rendering, TemplateError};
use serde_json::{Map, Value, json};

use super::{Target, is_told, seeds, shape};

/// The text of a template.
pub(super) const TEMPLATE: Target = Target {
    name: "template",
    run: template,
    seeds: seeds::templates,
    words: &[
        "{% for message in messages %}",
        "{% endfor %}",
        "{% if ",
        "{% elif true %}",
        "{% else %}",
        "{% endif %}",
        "{{ ",
        " }}",
        "{%- ",
        " -%}",
        "{% set x = ",
        "{% macro m(a) %}",
        "{% endmacro %}",
        "{{ m(1) }}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% raw %}",
        "{# #}",
        "namespace(a=1)",
        "messages[0]['content']",
        "messages[::-1]",
        "loop.index0",
        "|tojson(indent=2)",
        "|trim",
        "|length",
        "|selectattr('role')",
        "raise_exception('no')",
        "strftime_now('%d %B')",
        "range(9)",
        ".split('a')[-1]",
        "tools",
        "bos_token",
        "is defined",
        "add_generation_prompt",
        "{% include 'default' %}",
        "{% break %}",
        "caller()",
        "self",
    ],
};

/// Far below those of a server, so that what never ends takes no time here.
const LIMITS: TemplateLimits = TemplateLimits {
    fuel: 100_000,
    output_bytes_max: 1 << 18,
    memory_bytes_max: 256 << 20,
    cpu_seconds_max: 10,
};

fn template(input: &[u8]) -> String {
    match std::str::from_utf8(input) {
        Ok(source) => rendered(source),
        Err(_) => "not UTF-8".into(),
    }
}

/// Compiles a template and renders some conversations.
pub(super) fn rendered(source: &str) -> String {
    let sources = TemplateSources {
        templates: vec![("default".to_owned(), source.to_owned())],
        named_tokens: BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]),
    };
    let template = match ChatTemplate::with_limits(sources, &Rendering::Here, LIMITS) {
        Ok(template) => template,
        Err(error) => return is_told(error, "chat template: "),
    };
    let mut told = String::new();
    for chat in CHATS.iter() {
        let chat = Chat {
            messages: &chat.messages,
            add_generation_prompt: !chat.continues,
            continue_final_message: chat.continues,
            tools: chat.tools.as_ref(),
            kwargs: &chat.kwargs,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let (first, second) = (template.render(&chat), template.render(&chat));
        assert_eq!(first, second, "a template gives two texts");
        match first {
            Ok(text) => {
                assert!(text.len() <= LIMITS.output_bytes_max);
                told.push_str(if text.is_empty() { "empty " } else { "text " });
            }
            Err(TemplateError::Damaged(what)) => panic!("{what} was found too late"),
            Err(error) => {
                assert!(error.to_string().len() < LIMITS.output_bytes_max + 4096);
                told.push_str(&shape(error));
            }
        }
    }
    told.truncate(told.floor_char_boundary(160));
    told
}

struct Conversation {
    messages: Vec<Message>,
    continues: bool,
    tools: Option<Value>,
    kwargs: Map<String, Value>,
}

static CHATS: LazyLock<Vec<Conversation>> = LazyLock::new(|| {
    let said =
        |role: &str, content: Content| Message { role: role.into(), content, fields: Map::new() };
    let text = |text: &str| Content::Text(text.into());
    let of = |messages: Vec<Message>| Conversation {
        messages,
        continues: false,
        tools: None,
        kwargs: Map::new(),
    };
    let user = || said("user", text(" What is {{ 1 }}?\n"));
    let mut odd = said("tool", Content::None);
    odd.fields.insert("tool_calls".into(), json!([{"function": {"name": "f", "arguments": {}}}]));
    let tools =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"a": [1.5]}}}]);
    vec![
        of(vec![user()]),
        of(vec![
            said("system", text("Be brief. é🙂")),
            user(),
            said("assistant", text("1")),
            user(),
        ]),
        Conversation { continues: true, ..of(vec![user(), said("assistant", text("It is "))]) },
        Conversation { tools: Some(tools), ..of(vec![user(), odd]) },
        of(vec![said("user", Content::Parts(vec!["a".into(), "b".into()]))]),
        of(Vec::new()),
    ]
});
