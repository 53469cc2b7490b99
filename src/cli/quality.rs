//! `secateur inspect --quality`: what quantized weights cost in quality, on a text.
use std::path::PathBuf;

use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::model::required;
use secateur::expert::quality::{self, Quality};
use secateur::expert::text::Tokenizer;
use secateur::expert::weights::precision::Precision;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::{ComputeDevice, Error, ErrorKind, Result};
use serde::Serialize;

use super::screen::Progress;
use super::{model, options, screen, stdin, text, trust};

#[derive(Debug, clap::Args)]
pub struct QualityArgs {
    /// Measure on the text in FILE, or on stdin for `-`, what quantized weights cost: perplexity, and how far the
    /// predictions are from those of the model as it is stored. Without --weights, q8, q6 and q4 are measured.
    #[arg(long, value_name = "FILE", conflicts_with = "no_fetch")]
    quality: Option<PathBuf>,
    /// With --quality: compare with this model, such as the unquantized one that a GGUF file was made of.
    #[arg(long, value_name = "DIR|FILE|NAME", requires = "quality")]
    against: Option<std::ffi::OsString>,
    /// With --quality: the device to compute on.
    #[arg(long, default_value = "auto", requires = "quality")]
    device: String,
}

/// With fewer predictions than this, the output warns that small differences cannot be told.
const FEW: usize = 200;

/// A row of the table.
#[derive(Serialize)]
pub struct Compared {
    /// The precision; `None` if the model was compared as it is stored.
    weights: Option<Precision>,
    /// Bytes of the weights on the device.
    weight_bytes: u64,
    /// Bytes of these weights by element type.
    weight_types: Vec<TypeBytes>,
    /// The model that it was compared with, as it is stored.
    reference: String,
    /// Bytes of the weights of the reference on the device.
    reference_bytes: u64,
    /// Bytes of these weights by element type.
    reference_types: Vec<TypeBytes>,
    #[serde(flatten)]
    quality: Quality,
}

/// The bytes of all weights of one element type.
#[derive(Serialize)]
struct TypeBytes {
    #[serde(rename = "type")]
    name: &'static str,
    bytes: u64,
}

/// The element types of the weights of a model, the one with the most bytes first.
fn types(model: &Decoder) -> Vec<TypeBytes> {
    model.weight_types().into_iter().map(|(dtype, bytes)| TypeBytes { name: dtype.name(), bytes }).collect()
}

/// Measures what the options ask for. The result is empty without `--quality`.
pub fn measure(
    args: &QualityArgs,
    weights: Option<Precision>,
    source: &ModelSource,
    name: &str,
) -> Result<Vec<Compared>> {
    let Some(file) = &args.quality else { return Ok(Vec::new()) };
    let text = match file.as_os_str() == "-" {
        true => stdin::read("the text")?,
        false => text::read(file, "the text")?,
    };
    let tokenizer = Tokenizer::load(source)?;
    let (begin, ids) = (tokenizer.beginning(), tokenizer.encode(&text)?);
    let against = match &args.against {
        Some(other) => Some(model::open(other, false, false)?),
        None => None,
    };
    let (other, other_name) = against.as_ref().map_or((source, name), |(source, name)| (source, name.as_str()));
    // Everything that can be refused is refused before gigabytes are read.
    let at_text = |e: Error| e.at(format!("{}, {name} against {other_name}", file.display()));
    quality::check(&ModelConfig::load(other)?, &ModelConfig::load(source)?, begin, &ids).map_err(at_text)?;
    if against.is_some() && Tokenizer::load(other)?.encode(&text)? != ids {
        return Err(at_text(
            Error::new(ErrorKind::Input, "the two models have different tokens for the text")
                .help("a model is compared with the one that it was made of"),
        ));
    }
    if against.is_none() && required::is_quantized(&Weights::open(source)?) {
        return Err(Error::new(ErrorKind::Input, "the weights of this model are quantized already")
            .at(name)
            .expected("a model to compare with: --against DIR, where DIR is the one that this file was made of"));
    }
    let device = trust::open(&args.device, false)?;
    let reference = load(other, other_name, None, &device)?;
    let precisions = match (weights, &args.against) {
        (Some(precision), _) => vec![Some(precision)],
        (None, Some(_)) => vec![None],
        (None, None) => Precision::ALL.map(Some).to_vec(),
    };
    let mut rows = Vec::new();
    for precision in precisions {
        let model = load(source, name, precision, &device)?;
        let what = options::in_precision(name, precision);
        let mut bar = Progress::new(&format!("reading the text with {what}"), false);
        let mut progress = |done, total| bar.at(done, total);
        let quality = pollster::block_on(quality::compare(&reference, &model, begin, &ids, &mut progress))
            .map_err(|e| device.explained(e))?;
        rows.push(Compared {
            weights: precision,
            weight_bytes: model.weight_bytes(),
            weight_types: types(&model),
            reference: other_name.to_string(),
            reference_bytes: reference.weight_bytes(),
            reference_types: types(&reference),
            quality,
        });
    }
    Ok(rows)
}

fn load(source: &ModelSource, name: &str, precision: Option<Precision>, device: &ComputeDevice) -> Result<Decoder> {
    let config = ModelConfig::load(source)?;
    // This is the context that a run has by default. The RoPE of some models depends on it.
    let context = config.context(None)?;
    if context < 2 * quality::WINDOW {
        return Err(Error::new(ErrorKind::Model, "the context of the model is too short to measure its quality")
            .at(name)
            .expected(format!("at least {} positions", 2 * quality::WINDOW))
            .found(context));
    }
    let what = options::in_precision(name, precision);
    let mut bar = Progress::new(&format!("loading {what}"), false);
    let weights = Weights::open(source)?;
    Decoder::load(&config, &weights, context, precision, device, &mut |done, total| bar.at(done, total))
}

/// The rows as a table for people.
pub fn table(rows: &[Compared]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let head = ["weights", "size", "perplexity", "mean KL (nats)", "largest KL", "same choice", "types"];
    let types = |types: &[TypeBytes]| {
        let each = types.iter().map(|t| format!("{} {}", screen::bytes(t.bytes), t.name));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut table = vec![head.map(String::from).to_vec()];
    table.push(vec![
        "reference".into(),
        screen::bytes(first.reference_bytes),
        format!("{:.3}", first.quality.reference_perplexity),
        String::new(),
        String::new(),
        String::new(),
        types(&first.reference_types),
    ]);
    for row in rows {
        let q = &row.quality;
        table.push(vec![
            row.weights.map_or("as stored".into(), |p| p.to_string()),
            screen::bytes(row.weight_bytes),
            format!("{:.3}", q.perplexity),
            format!("{:.5}", q.mean_divergence),
            format!("{:.3}", q.largest_divergence),
            format!("{:.1} %", 100.0 * q.same_choice),
            types(&row.weight_types),
        ]);
    }
    let n = first.quality.predictions;
    let few = if n < FEW { ", too few to tell small differences" } else { "" };
    let reference = &first.reference;
    format!(
        "\nQuality on {n} predicted tokens{few}; the reference is {reference} as stored:\n{}",
        screen::table(&table)
    )
}
