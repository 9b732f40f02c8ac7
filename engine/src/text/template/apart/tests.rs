//! Templates in processes of their own: alike to those here, and what ends them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Map, json};

use super::super::*;
use super::*;

/// In the environment of a process that is to render.
const RENDERS: &str = "PAGODA_TEST_RENDERS";
const PROCESS: &str = "text::template::apart::tests::the_process_that_renders";

/// Bounds that tests reach soon.
const LIMITS: TemplateLimits = TemplateLimits {
    fuel: 10_000_000,
    output_bytes_max: 64 << 20,
    memory_bytes_max: 64 << 20,
    cpu_seconds_max: 2,
};

/// This test program, as one that renders.
fn program() -> Program {
    let own = Program::own(&["--exact", PROCESS, "--nocapture", "--test-threads=1"]).unwrap();
    Program { environment: vec![(RENDERS.into(), "1".into())], ..own }
}

fn apart(source: &str, limits: TemplateLimits) -> Result<ChatTemplate, TemplateError> {
    let templates = vec![("default".to_owned(), source.to_owned())];
    let named_tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let sources = TemplateSources { templates, named_tokens };
    ChatTemplate::with_limits(sources, &Rendering::Apart(program()), limits)
}

fn said(text: &str) -> Vec<Message> {
    vec![Message {
        role: "user".into(),
        content: Content::Text(text.into()),
        fields: Map::from_iter([("score".to_owned(), json!(0.30000000000000004))]),
    }]
}

fn render(template: &ChatTemplate, messages: &[Message]) -> Result<String, TemplateError> {
    let kwargs = Map::from_iter([("mood".to_owned(), json!({"z": 1.0, "a": [-1, null]}))]);
    template.render(&Chat {
        messages,
        add_generation_prompt: true,
        continue_final_message: false,
        tools: None,
        kwargs: &kwargs,
        now: SystemTime::UNIX_EPOCH,
    })
}

/// Renders where it was started to; else sees that it ends when nobody asks it any more.
#[test]
fn the_process_that_renders() {
    if std::env::var_os(RENDERS).is_some() {
        std::process::exit(i32::from(answer_renderings().is_err()));
    }
    let mut worker = Worker::start(&program()).unwrap();
    assert!(matches!(worker.child.try_wait(), Ok(None)));
    worker.socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(worker.child.wait().unwrap().success());
}

#[test]
fn a_chat_is_rendered_as_it_is_here() {
    let source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.score }}\
                  {% endfor %}{{ mood|tojson }}{{ strftime_now('%Y') }}\
                  {% if messages[0].content == 'no' %}{{ raise_exception('Not so') }}{% endif %}";
    let (apart, here) = (apart(source, LIMITS).unwrap(), {
        ChatTemplate::new(source, &BTreeMap::from([("bos_token".into(), "<s>".into())])).unwrap()
    });
    for text in ["hi", "é🙂\0\"", "", "no", &"x".repeat(3 << 20)] {
        assert!(render(&apart, &said(text)) == render(&here, &said(text)), "{:.9}", text);
    }
    assert_eq!(render(&apart, &said("no")), Err(TemplateError::Raised("Not so".into())));
}

#[test]
fn a_long_conversation_has_room() {
    // Each line of it is copied a dozen times, as templates do that look for parts of it.
    let source = "{% for m in messages %}{% set c = m.content.split('</think>')[-1].strip() %}\
                  {% set c = c|trim|replace('a', 'b') ~ '\\n' %}{{ '<' ~ m.role ~ '>' + c }}\
                  {% endfor %}";
    let template = apart(source, TemplateLimits::default()).unwrap();
    let messages = vec![said(&"a line of it. ".repeat(80))[0].clone(); 2000];
    assert!(render(&template, &messages).unwrap().len() > 2 << 20);
    let one = said(&"a line of it. ".repeat(2 << 20));
    assert!(render(&template, &one).unwrap().len() > 28 << 20);
}

#[test]
fn chats_at_a_time_have_processes_of_their_own_which_stay() {
    let template = apart("{{ messages[0].content }}", LIMITS).unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let template = &template;
            scope.spawn(move || {
                for _ in 0..20 {
                    let text = number.to_string().repeat(1 << number);
                    assert_eq!(render(template, &said(&text)).unwrap(), text);
                }
            });
        }
    });
    let Place::Apart(apart) = &template.place else { panic!() };
    let ids = || apart.idle.lock().unwrap().iter().map(|one| one.child.id()).collect::<Vec<_>>();
    assert!((1..=4).contains(&ids().len()));
    // One that the system ended meanwhile costs nobody anything.
    let ended = ids();
    for worker in apart.idle.lock().unwrap().iter_mut() {
        worker.child.kill().unwrap();
        worker.child.wait().unwrap();
    }
    assert_eq!(render(&template, &said("again")).unwrap(), "again");
    assert!(ids().len() == 1 && !ended.contains(&ids()[0]));
    // Nor does one that ends between a look at it and the question.
    let other = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut apart.idle.lock().unwrap()[0].socket, other.0));
    drop(other.1);
    let ended = ids();
    assert_eq!(render(&template, &said("and again")).unwrap(), "and again");
    assert!(ids().len() == 1 && ended != ids());
}

#[test]
fn a_program_that_does_not_render_is_told() {
    let of = |path: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(OsString::from).collect();
        let program = Program { path: path.into(), arguments, environment: Vec::new() };
        let rendering = Rendering::Apart(program);
        let templates = vec![("default".to_owned(), String::new())];
        let sources = TemplateSources { templates, ..TemplateSources::default() };
        ChatTemplate::with_limits(sources, &rendering, LIMITS).map(drop).unwrap_err().to_string()
    };
    let told = of("/no/such/program", &[]);
    assert!(
        told.starts_with("the process that renders chat templates cannot be started"),
        "{told}"
    );
    let told = of("/bin/sh", &["-c", "exit 3"]);
    assert_eq!(told, "the process that renders chat templates ended with exit status: 3");
    let told = of("/bin/sh", &["-c", "echo nonsense that is long enough to be one >&0; sleep 60"]);
    assert_eq!(told, "the process that renders chat templates gave no answer of ours");
}

/// Holds that a template is ended by `bound`: at load, and at a request that it waited for.
fn is_bounded(source: &str, bound: Bound) {
    // A slow machine shall not take so long to fill memory that its time is over.
    let cpu_seconds_max = if bound == Bound::Time { LIMITS.cpu_seconds_max } else { 600 };
    let limits = TemplateLimits { cpu_seconds_max, ..LIMITS };
    let refused = apart(source, limits).map(drop).unwrap_err();
    let damaged = format!("one word takes more than the allowed {bound}");
    assert_eq!(refused, TemplateError::Damaged(damaged));
    let later =
        format!("{{% if messages[0].content == 'now' %}}{source}{{% else %}}no{{% endif %}}");
    let template = apart(&later, limits).unwrap();
    assert_eq!(render(&template, &said("now")), Err(TemplateError::TooMuch(bound)));
    assert_eq!(render(&template, &said("later")).as_deref(), Ok("no"), "nobody else is hurt");
}

/// A test for each way to grow.
macro_rules! bounded {
    ($($name:ident: $bound:ident, $source:expr;)*) => {
        $(#[test]
        fn $name() {
            is_bounded($source, Bound::$bound);
        })*
    };
}

const GROW: &str = "{% set ns = namespace(x='xxxxxxxx', l=['xxxxxxxx']) %}{% for i in range(60) %}";

fn grown(by: &str) -> String {
    format!("{GROW}{by}{{% endfor %}}")
}

bounded! {
    a_text_joined_to_itself: Memory, &grown("{% set ns.x = ns.x ~ ns.x %}");
    a_text_added_to_itself: Memory, &grown("{% set ns.x = ns.x + ns.x %}");
    a_text_times_a_number: Memory,
        "{% set l = [bos_token * 33000000, bos_token * 33000000] %}{{ l|length }}";
    a_text_between_its_own_pieces: Memory, &grown("{% set ns.x = [ns.x, ns.x]|join(ns.x) %}");
    a_text_in_place_of_its_letters: Memory, &grown("{% set ns.x = ns.x|replace('x', ns.x) %}");
    a_text_replaced_by_a_method: Memory, &grown("{% set ns.x = ns.x.replace('x', ns.x) %}");
    a_text_joined_by_a_method: Memory, &grown("{% set ns.x = ns.x.join([ns.x, ns.x]) %}");
    a_text_set_into_itself: Memory,
        &grown("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}");
    a_text_of_a_macro: Memory,
        &("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}".to_owned()
            + &grown("{% set ns.x = twice(ns.x) %}"));
    a_text_through_a_filter_block: Memory,
        &grown("{% set ns.x %}{% filter upper %}{{ ns.x }}{{ ns.x }}{% endfilter %}{% endset %}");
    a_text_that_is_indented: Memory,
        "{% set ns = namespace(x='x\n' * 1000000) %}{% for i in range(60) %}\
         {% set ns.x = ns.x|indent(1000) %}{% endfor %}";
    a_text_in_a_format: Memory, &grown("{% set ns.x = '%s%s'|format(ns.x, ns.x) %}");
    a_text_in_a_format_of_a_method: Memory, &grown("{% set ns.x = '{}{}'.format(ns.x, ns.x) %}");
    a_list_added_to_itself: Memory,
        &(grown("{% set ns.l = (ns.l + ns.l)|list %}") + "{{ ns.l|length }}");
    a_list_times_a_number: Memory,
        "{% set l = ([bos_token] * 30000000)|map('upper')|list %}{{ l|length }}";
    letters_as_a_list: Memory, "{% set l = (bos_token * 30000000)|list %}{{ l|length }}";
    lists_in_lists_as_json: Memory, &grown("{% set ns.l = [ns.l, ns.l] %}{{ ns.l|tojson }}");
    lists_in_lists_as_text: Memory,
        &grown("{% set ns.l = [ns.l, ns.l] %}{% set ns.x = ns.l|string %}");
    lists_in_lists_that_are_compared: Time,
        "{% set ns = namespace(a=['x'], b=['x']) %}{% for i in range(60) %}\
         {% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}";
    a_list_that_is_deep: Memory,
        "{% set ns = namespace(l=[]) %}{% for a in range(1000) %}{% for b in range(1000) %}\
         {% set ns.l = [ns.l] %}{% endfor %}{% endfor %}{{ ns.l|length }}";
    a_number_of_spaces: Memory, "{{ bos_token|indent(500000000, true) }}";
    pieces_of_a_text: Memory, "{% set l = (bos_token * 30000000).split('s') %}{{ l|length }}";
}

#[test]
fn constants_that_a_compiler_multiplies_are_bounded_too() {
    let refused = apart("{% if false %}{{ ['x' * 99000000, 'y' * 99000000] }}{% endif %}", LIMITS);
    let damaged = "one word takes more than the allowed memory".to_owned();
    assert_eq!(refused.map(drop), Err(TemplateError::Damaged(damaged)));
}
