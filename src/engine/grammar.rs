//! Keeps an answer to its [`AnswerFormat`]: which tokens may come next, by the crate `llguidance`.
//!
//! The crate walks a trie of the vocabulary's bytes beside a parser of the grammar. Formats come from strangers:
//! [`AnswerFormat::check`] limits their parts, and the crate limits the work of each step. Grammars are kept, so that
//! the grammar that is made when a request is resolved is not made again when the request runs. Without the feature
//! `grammar`, as in the browser's build, a request with a format is refused.
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
    /// template has one. For the 151,936 tokens of Qwen3 this takes about half a second of processor time.
    ///
    /// # Errors
    /// A build without the feature `grammar`, and a model without an end-of-sequence token.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32], calls: Option<CallFormat>) -> Result<Self> {
        imp::Grammars::new(tokenizer, vocab, eos, calls).map(Self)
    }

    /// The beginning of an answer in this format.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for a format that is malformed, that nothing can match, or that
    /// uses what is not supported.
    pub fn begin(&self, format: &AnswerFormat) -> Result<Grammar> {
        format.check()?;
        Ok(Grammar { state: self.0.begin(format)?, begun: false })
    }
}

impl Grammar {
    /// Whether the answer has at least one token.
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

    /// Appends a token to the answer. Returns whether the answer is complete, so that nothing can follow.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) for a token that was not allowed.
    pub fn push(&mut self, id: u32) -> Result<bool> {
        self.begun = true;
        self.state.push(id)
    }

    /// Whether the text so far is an answer in the format, although more might follow.
    pub fn may_end(&mut self) -> bool {
        self.state.may_end()
    }
}

#[cfg(feature = "grammar")]
mod imp {
    use std::collections::VecDeque;
    use std::fmt::Display;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, Mutex, PoisonError};

    use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
    use llguidance::earley::SlicedBiasComputer;
    use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
    use llguidance::{Matcher, ParserFactory};
    use serde_json::{Value, json};

    use super::{AnswerFormat, CallFormat, Result, Tokenizer};
    use crate::{Error, ErrorKind};

    /// White space between the parts of JSON: none, one blank, or a new line with an indentation. Without a limit, a
    /// model that does not know how to continue writes white space until its token limit is reached.
    const BLANK: &str = r" |\n {0,32}|\n\t{0,8}";
    /// The key in a schema that holds the crate's options for reading it.
    const OPTIONS: &str = "x-guidance";
    /// The number of grammars that are kept: those that were used last.
    const KEPT: usize = 16;
    /// The length in bytes of the longest token in the trie. A longer token is never allowed.
    const LONGEST_TOKEN: usize = 255;
    /// The most states of the automaton of one grammar. Each takes one or two kilobytes.
    const MOST_STATES: usize = 20_000;

    pub(super) struct Grammars {
        factory: ParserFactory,
        words: usize,
        tokenizer: Tokenizer,
        calls: Option<CallFormat>,
        /// The matchers at the beginning of an answer, for the formats that were used last. The latest is at the end.
        kept: Mutex<VecDeque<(AnswerFormat, Matcher)>>,
    }

    pub(super) struct Grammar {
        matcher: Matcher,
        words: usize,
    }

    impl Grammars {
        pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32], calls: Option<CallFormat>) -> Result<Self> {
            let Some(first) = eos.first() else {
                let what = "the model has no end-of-sequence token, so no answer of a format can end";
                return Err(Error::new(ErrorKind::Model, what).at("`answer_format`"));
            };
            let bytes: Vec<Vec<u8>> = (0..vocab as u32)
                .map(|id| match tokenizer.is_control(id) || eos.contains(&id) {
                    // No text matches a token that starts with this byte.
                    true => {
                        let spelling = tokenizer.spelling(id).unwrap_or_default();
                        [&[TokTrie::SPECIAL_TOKEN_MARKER], spelling.as_bytes()].concat()
                    }
                    false => tokenizer.written(id),
                })
                .map(|bytes| if bytes.len() > LONGEST_TOKEN { Vec::new() } else { bytes })
                .collect();
            let made = catch_unwind(AssertUnwindSafe(|| {
                let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, *first), &bytes).with_eos_tokens(eos);
                let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
                ParserFactory::new(&env, InferenceCapabilities::default(), &SlicedBiasComputer::general_slices())
            }));
            let failed = |e: &dyn Display| {
                Error::new(ErrorKind::Internal, "the vocabulary cannot be prepared for grammars").found(e)
            };
            let mut factory = made.map_err(|_| failed(&"a panic"))?.map_err(|e| failed(&e))?;
            factory.quiet();
            let limits =
                ParserLimits { max_lexer_states: MOST_STATES, verbose_errors: false, ..ParserLimits::default() };
            *factory.limits_mut() = limits;
            let (words, tokenizer) = (vocab.div_ceil(32), tokenizer.clone());
            Ok(Self { factory, words, tokenizer, calls, kept: Mutex::default() })
        }

        pub fn begin(&self, format: &AnswerFormat) -> Result<Grammar> {
            let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let known = {
                let mut kept = kept();
                let at = kept.iter().position(|(known, _)| known == format);
                at.and_then(|at| kept.remove(at))
            };
            // The lock is not held here, so that other requests need not wait until this grammar is made.
            let matcher = match known {
                Some((_, matcher)) => matcher,
                None => self.made(format)?,
            };
            let grammar = Grammar { matcher: matcher.deep_clone(), words: self.words };
            let mut kept = kept();
            kept.push_back((format.clone(), matcher));
            let first = kept.len().saturating_sub(KEPT);
            kept.drain(..first);
            Ok(grammar)
        }

        /// The beginning of an answer in a format that is not kept.
        fn made(&self, format: &AnswerFormat) -> Result<Matcher> {
            let refused = |e: &dyn Display| {
                let (kind, found) = match said(e) {
                    Some(found) => (ErrorKind::Input, found),
                    None => (ErrorKind::Internal, "a panic".into()),
                };
                Error::new(kind, "the format of the answer cannot be used").at("`answer_format`").found(found)
            };
            let grammar = match format {
                AnswerFormat::JsonObject => TopLevelGrammar::from_json_schema(spaced(json!({"type": "object"}))),
                AnswerFormat::JsonSchema { schema } => TopLevelGrammar::from_json_schema(spaced(schema.clone())),
                AnswerFormat::Regex { pattern } => TopLevelGrammar::from_regex(pattern),
                AnswerFormat::Choice { choices } => {
                    let quoted: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
                    // A name in capitals is one regular expression, not a rule with one branch for each text.
                    TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | ")))
                }
                AnswerFormat::ToolCalls { tools, several } => {
                    TopLevelGrammar::from_lark(self.calls(tools, *several).map_err(|what| refused(&what))?)
                }
            };
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            if let Some(error) = matcher.get_error() {
                return Err(refused(&error));
            }
            // For a grammar that nothing can match, this call fails or allows no token.
            let begins = matcher.compute_mask().map_err(|e| refused(&e))?;
            if begins.is_zero() {
                return Err(refused(&"no text matches it"));
            }
            Ok(matcher)
        }

        /// The grammar of calls of these tools, in the language of the crate.
        fn calls(&self, tools: &[Value], several: bool) -> Result<String, &'static str> {
            let format = self.calls.ok_or("the model's chat template shows no calls of tools in a known form")?;
            // The mark of a call is a token of its own, or the tokens that spell it.
            let mark = |text: &str| match self.tokenizer.single_id(text).filter(|id| self.tokenizer.is_control(*id)) {
                Some(id) => format!("<[{id}]>"),
                None => quoted(text),
            };
            let name = |tool: &Value| tool["function"]["name"].as_str().unwrap_or_default().to_string();
            let arguments = |tool: &Value| {
                let mut schema = match &tool["function"]["parameters"] {
                    schema @ Value::Object(_) => schema.clone(),
                    _ => json!({}),
                };
                // The arguments are an object even if their schema does not say so.
                if schema.get("type").is_none() {
                    schema["type"] = "object".into();
                }
                format!("%json {}", spaced(schema))
            };
            // References in a schema start at its root, so the object around the arguments is spelled out.
            let object = |tool: &Value, key: &str| {
                let before = format!("{{\"name\": {}, \"{key}\": ", quoted(&name(tool)));
                format!("{} {} \"}}\"", quoted(&before), arguments(tool))
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
                    let tool = any(&|tool| format!("{} {middle} {}", quoted(&name(tool)), arguments(tool)));
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
            let mask = self.matcher.compute_mask_or_eos().map_err(|e| self.failed(&e))?;
            if mask.is_zero() {
                return Err(self.failed(&"no token goes on"));
            }
            let mut words = mask.as_slice().to_vec();
            words.resize(self.words, 0);
            Ok(words)
        }

        pub fn push(&mut self, id: u32) -> Result<bool> {
            self.matcher.consume_token(id).map_err(|e| self.failed(&e))?;
            Ok(self.matcher.is_stopped())
        }

        pub fn may_end(&mut self) -> bool {
            self.matcher.is_accepting().unwrap_or(false)
        }

        /// The error for an answer that cannot be continued.
        fn failed(&self, e: &dyn Display) -> Error {
            let found = said(e).unwrap_or_else(|| "a panic".into());
            let (kind, what) = match self.matcher.stop_reason() {
                StopReason::NoExtensionBias | StopReason::NoExtension => {
                    (ErrorKind::Input, "the model's vocabulary cannot write what the format of the answer asks for")
                }
                StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                    (ErrorKind::Input, "the format of the answer needs too much")
                }
                _ if found.contains("max is") => (ErrorKind::Input, "the format of the answer needs too much"),
                _ => (ErrorKind::Internal, "the answer could not be kept to its format"),
            };
            Error::new(kind, what).at("`answer_format`").found(found).help("use a simpler format")
        }
    }

    /// A text in the quotes of the crate's language, which are those of JSON.
    fn quoted(text: &str) -> String {
        Value::from(text).to_string()
    }

    /// The first line of the crate's error, with the reason; `None` for a panic that the crate caught.
    fn said(e: &dyn Display) -> Option<String> {
        let text = e.to_string();
        let line = text.lines().next().unwrap_or_default();
        if line.contains("panic") {
            return None;
        }
        // The place in the message is one in the grammar that was made from the format, so it is removed.
        let place = |text: &str| text.starts_with("at ") && text.ends_with(')');
        let line = line.split_once(": ").filter(|(before, _)| place(before)).map_or(line, |(_, said)| said);
        // An error in a regular expression has its reason at the end, after a drawing of the place.
        let reason = text.lines().find_map(|line| line.trim_start().strip_prefix("error: "));
        let said = reason.map_or(line.to_string(), |reason| format!("{} {reason}", line.trim_end()));
        Some(said.chars().take(300).collect())
    }

    /// A schema with little white space.
    fn spaced(mut schema: Value) -> Value {
        match &mut schema {
            Value::Object(fields) => drop(fields.insert(OPTIONS.into(), json!({"whitespace_pattern": BLANK}))),
            // `true` accepts every value. `false` accepts none and needs no options.
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

        pub fn may_end(&mut self) -> bool {
            match *self {}
        }
    }
}
