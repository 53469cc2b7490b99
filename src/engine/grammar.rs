//! Keeps an answer to its [`AnswerFormat`]: which tokens may come next, by the crate `llguidance`.
//!
//! The crate walks a trie of the vocabulary's bytes beside a parser of the grammar. What it takes is bounded by its own
//! limits, so that a grammar of a stranger costs milliseconds and not minutes. Without the feature `grammar`, as in the
//! browser's build, a request with a format is refused.
use crate::Result;
use crate::answer_format::AnswerFormat;
use crate::text::{CallFormat, Tokenizer};

/// The vocabulary of a model, prepared for grammars.
pub(crate) struct Grammars(imp::Grammars);

/// The answer of one request so far, and what its format allows next.
pub(crate) struct Grammar {
    state: imp::Grammar,
    begun: bool,
}

impl Grammars {
    /// For a model with `vocab` rows of logits, these end-of-sequence tokens, and this form of calls of tools, if its
    /// template has one. Takes some tenths of a second for a large vocabulary.
    ///
    /// # Errors
    /// A build without the feature `grammar`, and a model without an end-of-sequence token.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32], calls: Option<CallFormat>) -> Result<Self> {
        imp::Grammars::new(tokenizer, vocab, eos, calls).map(Self)
    }

    /// The beginning of an answer in this format.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for a format that is malformed, that nothing can match, or that uses
    /// what is not supported.
    pub fn begin(&self, format: &AnswerFormat) -> Result<Grammar> {
        format.check()?;
        Ok(Grammar { state: self.0.begin(format)?, begun: false })
    }
}

impl Grammar {
    /// Whether a token of the answer has come.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// A bit for each token of the vocabulary that may come next, in words of 32. Where the answer may end, the
    /// end-of-sequence tokens are among them.
    ///
    /// # Errors
    /// Where the format needs more than the limits of the crate allow.
    pub fn allowed(&mut self) -> Result<Vec<u32>> {
        self.state.allowed()
    }

    /// Takes in a token of the answer. Returns whether the answer is complete, so that nothing can follow.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) for a token that was not allowed.
    pub fn push(&mut self, id: u32) -> Result<bool> {
        self.begun = true;
        self.state.push(id)
    }
}

#[cfg(feature = "grammar")]
mod imp {
    use std::sync::Arc;

    use llguidance::api::TopLevelGrammar;
    use llguidance::earley::SlicedBiasComputer;
    use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
    use llguidance::{Matcher, ParserFactory};
    use serde_json::{Value, json};

    use super::{AnswerFormat, CallFormat, Result, Tokenizer};
    use crate::{Error, ErrorKind};

    /// White space between the parts of JSON: none, one blank, or a new line with an indentation. Without a limit, a model
    /// that does not know how to go on writes blanks until its budget is spent.
    const BLANK: &str = r" |\n {0,32}|\n\t{0,8}";
    /// The key in a schema by which the crate is told how to read it.
    const OPTIONS: &str = "x-guidance";

    pub(super) struct Grammars {
        factory: ParserFactory,
        words: usize,
        tokenizer: Tokenizer,
        calls: Option<CallFormat>,
    }

    pub(super) struct Grammar {
        matcher: Matcher,
        words: usize,
    }

    impl Grammars {
        pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32], calls: Option<CallFormat>) -> Result<Self> {
            let Some(first) = eos.first() else {
                let e = Error::new(
                    ErrorKind::Model,
                    "the model has no end-of-sequence token, so no answer of a format can end",
                );
                return Err(e.at("`answer_format`"));
            };
            let failed = |e: &dyn std::fmt::Display| {
                Error::new(ErrorKind::Internal, "the vocabulary cannot be prepared for grammars").found(e)
            };
            let bytes: Vec<Vec<u8>> = (0..vocab as u32)
                .map(|id| match tokenizer.is_control(id) {
                    // With this byte before it no text matches the token.
                    true => [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.spelling(id).unwrap_or_default().as_bytes()]
                        .concat(),
                    false => tokenizer.written(id),
                })
                .collect();
            let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, *first), &bytes).with_eos_tokens(eos);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let (capabilities, slices) = (InferenceCapabilities::default(), SlicedBiasComputer::general_slices());
            let mut factory = ParserFactory::new(&env, capabilities, &slices).map_err(|e| failed(&e))?;
            factory.quiet();
            Ok(Self { factory, words: vocab.div_ceil(32), tokenizer: tokenizer.clone(), calls })
        }

        pub fn begin(&self, format: &AnswerFormat) -> Result<Grammar> {
            let refused = |e: &dyn std::fmt::Display| {
                let error = Error::new(ErrorKind::Input, "the format of the answer cannot be used");
                error.at("`answer_format`").found(e)
            };
            let grammar = match format {
                AnswerFormat::JsonObject => TopLevelGrammar::from_json_schema(spaced(json!({"type": "object"}))),
                AnswerFormat::JsonSchema { schema } => TopLevelGrammar::from_json_schema(spaced(schema.clone())),
                AnswerFormat::Regex { pattern } => TopLevelGrammar::from_regex(pattern),
                AnswerFormat::Choice { choices } => {
                    // The strings of this language are those of JSON.
                    let quoted: Vec<String> =
                        choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
                    TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
                }
                AnswerFormat::ToolCalls { tools, several } => {
                    TopLevelGrammar::from_lark(self.calls(tools, *several).map_err(|what| refused(&what))?)
                }
            };
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            if let Some(error) = matcher.get_error() {
                return Err(refused(&error));
            }
            // A grammar that nothing can match shows here.
            let begins = matcher.compute_mask().map_err(|e| refused(&e))?;
            if begins.is_zero() {
                return Err(refused(&"no text matches it"));
            }
            Ok(Grammar { matcher, words: self.words })
        }

        /// The grammar of calls of these tools, in the language of the crate.
        fn calls(&self, tools: &[Value], several: bool) -> Result<String, &'static str> {
            let format = self.calls.ok_or("the model's chat template shows no calls of tools in a known form")?;
            // The mark of a call is a token of its own, or the tokens that spell it.
            let mark = |text: &str| match self.tokenizer.single_id(text).filter(|id| self.tokenizer.is_control(*id)) {
                Some(id) => format!("<[{id}]>"),
                None => Value::from(text).to_string(),
            };
            let arguments = |tool: &Value| match &tool["function"]["parameters"] {
                schema @ Value::Object(_) => schema.clone(),
                _ => json!({"type": "object"}),
            };
            let object = |tool: &Value, key: &str| {
                let properties = json!({"name": {"const": tool["function"]["name"]}, key: arguments(tool)});
                let required = json!(["name", key]);
                let object = json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
                format!("%json {}", spaced(object))
            };
            let any = |one: &dyn Fn(&Value) -> String| {
                let rules: Vec<String> = (0..).zip(tools).map(|(i, tool)| format!("tool_{i}: {}", one(tool))).collect();
                let names: Vec<String> = (0..rules.len()).map(|i| format!("tool_{i}")).collect();
                format!("tool: {}\n{}", names.join(" | "), rules.join("\n"))
            };
            let more = |separator: &str| if several { format!(" ({separator} call)*") } else { String::new() };
            Ok(match format {
                CallFormat::Tagged => {
                    let (open, close) = (mark("<tool_call>"), mark("</tool_call>"));
                    let tool = any(&|tool| object(tool, "arguments"));
                    format!("start: call{}\ncall: {open} \"\\n\" tool \"\\n\" {close}\n{tool}", more("\"\\n\""))
                }
                CallFormat::Bare => {
                    let tool = any(&|tool| object(tool, "parameters"));
                    format!("start: call{}\ncall: tool\n{tool}", more("\"; \""))
                }
                CallFormat::Marked if self.tokenizer.single_id("[ARGS]").is_some() => {
                    let (open, middle) = (mark("[TOOL_CALLS]"), mark("[ARGS]"));
                    let tool =
                        any(&|tool| format!("{} {middle} %json {}", tool["function"]["name"], spaced(arguments(tool))));
                    format!("start: call{}\ncall: {open} tool\n{tool}", more(""))
                }
                CallFormat::Marked => {
                    let (open, tool) = (mark("[TOOL_CALLS]"), any(&|tool| object(tool, "arguments")));
                    format!("start: {open} \"[\" call{} \"]\"\ncall: tool\n{tool}", more("\", \""))
                }
                CallFormat::Xml => return Err("a call cannot be forced in the form of this model"),
            })
        }
    }

    impl Grammar {
        pub fn allowed(&mut self) -> Result<Vec<u32>> {
            let failed = |e: &dyn std::fmt::Display| {
                let error = Error::new(ErrorKind::Input, "the format of the answer needs too much");
                error.at("`answer_format`").found(e).help("use a simpler format")
            };
            let mask = self.matcher.compute_mask_or_eos().map_err(|e| failed(&e))?;
            let mut words = mask.as_slice().to_vec();
            words.resize(self.words, 0);
            Ok(words)
        }

        pub fn push(&mut self, id: u32) -> Result<bool> {
            self.matcher.consume_token(id).map_err(|e| {
                let error =
                    Error::new(ErrorKind::Internal, "a token was sampled that the format of the answer forbids");
                error.at("`answer_format`").found(e)
            })?;
            Ok(self.matcher.is_stopped())
        }
    }

    /// A schema with little white space. One that says itself how it is to be read stays as it is.
    fn spaced(mut schema: Value) -> Value {
        match &mut schema {
            Value::Object(fields) if !fields.contains_key(OPTIONS) => {
                fields.insert(OPTIONS.into(), json!({"whitespace_pattern": BLANK}));
            }
            // Every value, or none.
            Value::Bool(true) => schema = json!({OPTIONS: {"whitespace_pattern": BLANK}}),
            _ => (),
        }
        schema
    }
}

#[cfg(not(feature = "grammar"))]
mod imp {
    use super::{AnswerFormat, CallFormat, Result, Tokenizer};
    use crate::{Error, ErrorKind};

    pub(super) enum Grammars {}
    pub(super) enum Grammar {}

    impl Grammars {
        pub fn new(_: &Tokenizer, _: usize, _: &[u32], _: Option<CallFormat>) -> Result<Self> {
            let e = Error::new(ErrorKind::Input, "this build of secateur keeps no answer to a format");
            Err(e.at("`answer_format`").help("leave it out, or use the command line or the server"))
        }

        pub fn begin(&self, _: &AnswerFormat) -> Result<Grammar> {
            match *self {}
        }
    }

    impl Grammar {
        pub fn allowed(&mut self) -> Result<Vec<u32>> {
            match *self {}
        }

        pub fn push(&mut self, _: u32) -> Result<bool> {
            match *self {}
        }
    }
}
