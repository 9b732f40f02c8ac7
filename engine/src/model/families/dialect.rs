//! How a family writes a conversation, and what its own code adds to a vocabulary file.
//!
//! For folders that do not say it themselves: a checkpoint's chat template and tokenizer.json always
//! win. Plain data, read once at load; templates are jinja, one file each in `templates`.

/// One way to write a conversation.
#[derive(Debug)]
pub struct Dialect {
    /// Tokens that the template writes. A tokenizer that lacks one does not speak this dialect; in a
    /// vocabulary file they are special, whatever it says.
    pub marks: &'static [&'static str],
    /// Those of them that end an answer, beside the end tokens that a checkpoint names.
    pub ends: &'static [&'static str],
    /// For a checkpoint without a chat template.
    pub template: &'static str,
    /// How a vocabulary without tokenizer.json is to be read.
    pub vocabulary: Vocabulary,
}

/// A vocabulary file, and what stands only in the code that came with it.
#[derive(Debug)]
pub struct Vocabulary {
    /// Which kind of file; another kind is not of this dialect.
    pub kind: VocabularyKind,
    /// Special tokens behind those of the file, in the order of their ids.
    pub appended: &'static [Appended],
    /// What begins a prompt, where it is not the begin token.
    pub begin: &'static [&'static str],
    /// Digits in one token at most, which only tiktoken's files leave open.
    pub digits: Digits,
    /// Whether a text is brought into Unicode's normal form C first.
    pub composed: bool,
}

/// Kinds of vocabulary files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabularyKind {
    /// A model of sentencepiece (tokenizer.model).
    SentencePiece,
    /// Tokens and ranks (*.tiktoken, or tokenizer.model in that form).
    Tiktoken,
}

/// Tokens behind those of the file.
#[derive(Clone, Copy, Debug)]
pub enum Appended {
    /// One.
    Token(&'static str),
    /// So many, with numbers from 0 between the two parts.
    Numbered(&'static str, u32, &'static str),
}

/// Digits in one token at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digits {
    /// Each digit is a token of its own.
    One,
    /// Numbers are cut after each three digits.
    Three,
}

/// A vocabulary file to which its code adds nothing.
const PLAIN: Vocabulary = Vocabulary {
    kind: VocabularyKind::SentencePiece,
    appended: &[],
    begin: &[],
    digits: Digits::Three,
    composed: false,
};

/// Llama 2.
pub const LLAMA2: Dialect = Dialect {
    marks: &["<s>", "</s>"],
    ends: &[],
    template: include_str!("templates/llama2.jinja"),
    vocabulary: PLAIN,
};

/// Mistral and Mixtral.
pub const MISTRAL: Dialect = Dialect {
    marks: &["<s>", "</s>"],
    ends: &[],
    template: include_str!("templates/mistral.jinja"),
    vocabulary: PLAIN,
};

/// Phi-3.
pub const PHI3: Dialect = Dialect {
    marks: &["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    ends: &["<|end|>"],
    template: include_str!("templates/phi3.jinja"),
    vocabulary: PLAIN,
};

/// Gemma 1 and 2, which know no system message.
pub const GEMMA: Dialect = Dialect {
    marks: &["<bos>", "<start_of_turn>", "<end_of_turn>"],
    ends: &["<end_of_turn>"],
    template: include_str!("templates/gemma.jinja"),
    vocabulary: PLAIN,
};

/// Gemma 3, which reads it before the first question.
pub const GEMMA3: Dialect = Dialect { template: include_str!("templates/gemma3.jinja"), ..GEMMA };

/// Qwen2 and later: turns and nothing else.
pub const CHATML: Dialect = Dialect {
    marks: &["<|im_start|>", "<|im_end|>"],
    ends: &[],
    template: include_str!("templates/chatml.jinja"),
    vocabulary: Vocabulary { kind: VocabularyKind::Tiktoken, ..PLAIN },
};

/// The first Qwen, whose code names a system message of its own and stops at either mark.
pub const QWEN: Dialect = Dialect {
    marks: &["<|im_start|>", "<|im_end|>"],
    ends: &["<|im_start|>", "<|im_end|>"],
    template: include_str!("templates/qwen.jinja"),
    vocabulary: Vocabulary {
        kind: VocabularyKind::Tiktoken,
        appended: &[
            Appended::Token("<|endoftext|>"),
            Appended::Token("<|im_start|>"),
            Appended::Token("<|im_end|>"),
            Appended::Numbered("<|extra_", 205, "|>"),
        ],
        begin: &[],
        digits: Digits::One,
        composed: true,
    },
};

/// ChatGLM3.
pub const CHATGLM3: Dialect = Dialect {
    marks: &["[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
    ends: &["<|user|>", "<|observation|>"],
    template: include_str!("templates/chatglm3.jinja"),
    vocabulary: Vocabulary {
        appended: &[
            Appended::Token("[MASK]"),
            Appended::Token("[gMASK]"),
            Appended::Token("[sMASK]"),
            Appended::Token("sop"),
            Appended::Token("eop"),
            Appended::Token("<|system|>"),
            Appended::Token("<|user|>"),
            Appended::Token("<|assistant|>"),
            Appended::Token("<|observation|>"),
        ],
        begin: &["[gMASK]", "sop"],
        ..PLAIN
    },
};

/// GLM-4. As first published its vocabulary is tiktoken's, and tokenizer_config.json lists the rest.
pub const GLM4: Dialect = Dialect {
    marks: &["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
    ends: &["<|user|>", "<|observation|>"],
    template: include_str!("templates/glm4.jinja"),
    vocabulary: Vocabulary {
        kind: VocabularyKind::Tiktoken,
        begin: &["[gMASK]", "<sop>"],
        ..PLAIN
    },
};
