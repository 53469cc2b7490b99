//! `secateur inspect --quality`: what quantized weights cost in quality, on a text.
use std::path::PathBuf;

use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::quality::{self, Quality};
use secateur::expert::text::Tokenizer;
use secateur::expert::weights::precision::Precision;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::{ComputeDevice, Error, ErrorKind, Result};
use serde::Serialize;

use super::screen::Progress;
use super::{model, options, screen, text};

#[derive(Debug, clap::Args)]
pub struct QualityArgs {
    /// Measure on the text in FILE what quantized weights cost: perplexity, and how far the predictions are from those
    /// of the model as it is stored. Without --weights, q8, q6 and q4 are measured.
    #[arg(long, value_name = "FILE")]
    quality: Option<PathBuf>,
    /// With --quality: quantize the weights to this precision (q8, q6 or q4).
    #[arg(long, value_name = "PRECISION", requires = "quality", value_parser = options::parsed::<Precision>)]
    weights: Option<Precision>,
    /// With --quality: compare with this model, such as the unquantized one that a GGUF file was made of.
    #[arg(long, value_name = "DIR|FILE|NAME", requires = "quality")]
    against: Option<std::ffi::OsString>,
    /// With --quality: the device to compute on.
    #[arg(long, default_value = "auto", requires = "quality")]
    device: String,
}

/// A row of the table.
#[derive(Serialize)]
pub struct Compared {
    /// The precision; `None` if the model was compared as it is stored.
    weights: Option<Precision>,
    /// Bytes of the weights on the device.
    weight_bytes: u64,
    #[serde(flatten)]
    quality: Quality,
}

/// What was asked for, measured; empty without `--quality`.
pub fn measure(args: &QualityArgs, source: &ModelSource, name: &str) -> Result<Vec<Compared>> {
    let Some(file) = &args.quality else { return Ok(Vec::new()) };
    let text = text::read(file, "the text")?;
    let ids = Tokenizer::load(source)?.encode(&text)?;
    let against = match &args.against {
        Some(other) => Some(model::open(other, false, false)?),
        None => None,
    };
    let (other, other_name) = against.as_ref().map_or((source, name), |(source, name)| (source, name.as_str()));
    let device = pollster::block_on(ComputeDevice::open(&args.device))?;
    let reference = load(other, other_name, None, &device)?;
    let precisions = match (args.weights, &args.against) {
        (Some(precision), _) => vec![Some(precision)],
        (None, Some(_)) => vec![None],
        (None, None) => Precision::ALL.map(Some).to_vec(),
    };
    let mut rows = Vec::new();
    for precision in precisions {
        let model = load(source, name, precision, &device)?;
        let what = precision.map_or(name.to_string(), |p| format!("{name} in {p}"));
        let mut bar = Progress::new(&format!("reading the text with {what}"), false);
        let mut progress = |done, total| bar.at(done, total);
        let quality = pollster::block_on(quality::compare(&reference, &model, &ids, &mut progress))?;
        rows.push(Compared { weights: precision, weight_bytes: model.weight_bytes(), quality });
    }
    Ok(rows)
}

fn load(source: &ModelSource, name: &str, precision: Option<Precision>, device: &ComputeDevice) -> Result<Decoder> {
    let config = ModelConfig::load(source)?;
    if config.max_position_embeddings < quality::WINDOW {
        return Err(Error::new(ErrorKind::Model, "the context of the model is too short to measure its quality")
            .expected(format!("at least {} positions", quality::WINDOW))
            .found(config.max_position_embeddings));
    }
    let what = precision.map_or(name.to_string(), |p| format!("{name} in {p}"));
    let mut bar = Progress::new(&format!("loading {what}"), false);
    let weights = Weights::open(source)?;
    Decoder::load(&config, &weights, quality::WINDOW, precision, device, &mut |done, total| bar.at(done, total))
}

/// The rows as a table for people.
pub fn table(rows: &[Compared]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut table =
        vec![["weights", "size", "perplexity", "mean KL", "largest KL", "same choice"].map(String::from).to_vec()];
    let reference = first.quality.reference_perplexity;
    table.push(vec!["reference".into(), "-".into(), format!("{reference:.3}"), "0".into(), "0".into(), "100 %".into()]);
    for row in rows {
        let q = &row.quality;
        table.push(vec![
            row.weights.map_or("as stored".into(), |p| p.to_string()),
            screen::bytes(row.weight_bytes),
            format!("{:.3}", q.perplexity),
            format!("{:.5}", q.mean_divergence),
            format!("{:.3}", q.largest_divergence),
            format!("{:.1} %", 100.0 * q.same_choice),
        ]);
    }
    format!("\nQuality on {} predicted tokens:\n{}", first.quality.predictions, screen::table(&table))
}
