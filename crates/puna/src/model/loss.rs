//! The losses of the heads. Logits and labels enter, one number leaves: cross entropy
//! `-log softmax(logits)[label]` over the labels that count, squared error, or the binary cross
//! entropy `max(x, 0) - x y + log(1 + exp(-|x|))` of each label by itself.

use puna_kernels::Backend;

use super::LlamaModel;
use super::input_error::{InputError, expect_len};
use crate::config::{LlamaConfig, ProblemType};

/// A label that does not count.
pub const IGNORE_INDEX: i64 = -100;

/// How the losses of the tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Their mean; NaN where no token counts, as PyTorch has it.
    Mean,
    /// Their sum over this many items: the number in all batches that share a step.
    SumOver(f64),
}

/// Labels of a classification head.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a> {
    /// One class for each row `(batch)`, or whole numbers to come near to.
    Integers(&'a [i64]),
    /// `(batch)` or `(batch, num_labels)`.
    Floats(&'a [f32]),
}

/// Cross entropy of logits `(labels, n_classes)`, taken in `f32`. Labels of `ignore_index` do not
/// count.
///
/// # Errors
/// A label that names no class, or another number of labels than of rows.
pub fn cross_entropy<B: Backend>(
    backend: &B,
    (logits, n_classes): (&[f32], usize),
    labels: &[i64],
    ignore_index: i64,
    reduction: Loss,
) -> Result<f32, InputError> {
    let predictions = logits.len() / n_classes.max(1);
    if predictions != labels.len() {
        return Err(InputError::LabelCount { predictions, labels: labels.len() });
    }
    let target = |&label: &i64| match u32::try_from(label) {
        _ if label == ignore_index => Ok(None),
        Ok(id) if (id as usize) < n_classes => Ok(Some(id)),
        _ => Err(InputError::Label { label }),
    };
    let targets = labels.iter().map(target).collect::<Result<Vec<_>, _>>()?;
    let mut buf = backend.alloc(logits.len(), "logits")?;
    backend.write(&mut buf, 0, logits);
    let mut nll = vec![0.0; targets.len()];
    backend.cross_entropy(&buf, n_classes, &targets, &mut nll);
    let total: f64 = nll.iter().map(|&x| f64::from(x)).sum();
    let items = match reduction {
        Loss::Mean => targets.iter().flatten().count() as f64,
        Loss::SumOver(items) => items,
    };
    Ok((total / items) as f32)
}

/// Loss of a language model: token `t` predicts label `t + 1`, the last of a row predicts nothing.
///
/// logits `(batch, len, vocab_size)`, labels `(batch, len)`. Labels that are shifted already go to
/// [`cross_entropy`] as they are.
///
/// # Errors
/// A label that is no token, or slices of the wrong length.
pub fn causal_lm_loss<B: Backend>(
    model: &LlamaModel<B>,
    logits: &[f32],
    labels: &[i64],
    len: usize,
    reduction: Loss,
) -> Result<f32, InputError> {
    let shifted: Vec<i64> = labels
        .chunks(len.max(1))
        .flat_map(|row| row.iter().skip(1).copied().chain([IGNORE_INDEX]))
        .collect();
    let classes = (logits, model.config.vocab_size);
    cross_entropy(&*model.backend, classes, &shifted, IGNORE_INDEX, reduction)
}

/// What a classification head is trained for, where the configuration does not say it: one label is
/// a number to come near to, whole numbers name a class, the rest are as many yes and no.
pub fn infer_problem_type(config: &LlamaConfig, labels: Labels<'_>) -> ProblemType {
    match (config.problem_type, labels) {
        (Some(problem_type), _) => problem_type,
        (None, _) if config.num_labels() == 1 => ProblemType::Regression,
        (None, Labels::Integers(_)) => ProblemType::SingleLabelClassification,
        (None, Labels::Floats(_)) => ProblemType::MultiLabelClassification,
    }
}

/// Reads the name of what a head is trained for.
///
/// # Errors
/// There is no such thing, in the words of Transformers.
pub fn problem_type(name: &str) -> Result<ProblemType, InputError> {
    ProblemType::from_name(name).ok_or_else(|| InputError::ProblemType(name.to_owned()))
}

/// Loss of a sequence classifier. logits `(batch, num_labels)`.
///
/// # Errors
/// Labels of the wrong type, number or range.
pub fn classification_loss<B: Backend>(
    backend: &B,
    problem_type: ProblemType,
    (logits, num_labels): (&[f32], usize),
    labels: Labels<'_>,
) -> Result<f32, InputError> {
    match (problem_type, labels) {
        (ProblemType::Regression, Labels::Integers(labels)) => {
            let labels: Vec<f32> = labels.iter().map(|&label| label as f32).collect();
            mean_over(logits, &labels, squared_error)
        }
        (ProblemType::Regression, Labels::Floats(labels)) => {
            mean_over(logits, labels, squared_error)
        }
        (ProblemType::MultiLabelClassification, Labels::Floats(labels)) => {
            mean_over(logits, labels, binary_cross_entropy)
        }
        (ProblemType::SingleLabelClassification, Labels::Integers(labels)) => {
            cross_entropy(backend, (logits, num_labels), labels, IGNORE_INDEX, Loss::Mean)
        }
        _ => Err(InputError::LabelType { problem_type }),
    }
}

fn mean_over(logits: &[f32], labels: &[f32], loss: fn(f64, f64) -> f64) -> Result<f32, InputError> {
    expect_len("labels", labels.len(), logits.len())?;
    let pairs = logits.iter().zip(labels);
    let total: f64 = pairs.map(|(&x, &y)| loss(f64::from(x), f64::from(y))).sum();
    Ok((total / logits.len() as f64) as f32)
}

fn squared_error(x: f64, y: f64) -> f64 {
    (x - y) * (x - y)
}

fn binary_cross_entropy(x: f64, y: f64) -> f64 {
    x.max(0.0) - x * y + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use puna_kernels::{Cpu, CpuOptions};

    fn cpu() -> Cpu {
        Cpu::new(&CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap()
    }

    #[test]
    fn ignored_labels_do_not_count_and_others_must_name_a_class() {
        let logits = [1.0, 2.0, 0.5, 0.5];
        let mean =
            |labels: &[i64]| cross_entropy(&cpu(), (&logits, 2), labels, IGNORE_INDEX, Loss::Mean);
        // log(1 + e) - 1 and log 2.
        let (first, second) = (std::f64::consts::E.ln_1p() as f32, std::f32::consts::LN_2);
        assert!((mean(&[0, -100]).unwrap() - first).abs() < 1e-6);
        assert!((mean(&[0, 1]).unwrap() - (first + second) / 2.0).abs() < 1e-6);
        assert!(mean(&[-100, -100]).unwrap().is_nan());
        assert_eq!(mean(&[0, 2]).unwrap_err().to_string(), "Target 2 is out of bounds.");
        assert_eq!(mean(&[0, -1]).unwrap_err(), InputError::Label { label: -1 });
        let error = mean(&[0]).unwrap_err().to_string();
        assert_eq!(error, "Expected input batch_size (2) to match target batch_size (1).");
    }

    #[test]
    fn each_problem_has_its_labels() {
        let loss = |problem_type, labels| {
            classification_loss(&cpu(), problem_type, (&[0.5, -1.5], 2), labels)
        };
        let floats = Labels::Floats(&[1.0, 0.0]);
        let mse = loss(ProblemType::Regression, floats).unwrap();
        assert!((mse - (0.25 + 2.25) / 2.0).abs() < 1e-6);
        let whole = loss(ProblemType::Regression, Labels::Integers(&[1, 0])).unwrap();
        assert_eq!(mse, whole);
        // -log σ(0.5) and -log(1 - σ(-1.5)).
        let bce = loss(ProblemType::MultiLabelClassification, floats).unwrap();
        assert!((bce - (0.474_077 + 0.201_413) / 2.0).abs() < 1e-6);
        let error = loss(ProblemType::SingleLabelClassification, floats).unwrap_err();
        assert_eq!(error.to_string(), "expected scalar type Long but found Float");
        let integers = Labels::Integers(&[1, 0]);
        let error = loss(ProblemType::MultiLabelClassification, integers).unwrap_err();
        assert!(error.to_string().starts_with("result type Float can't be cast"));
        assert!(loss(ProblemType::Regression, Labels::Floats(&[1.0])).is_err());
        assert_eq!(problem_type("regression"), Ok(ProblemType::Regression));
        assert_eq!(problem_type("x").unwrap_err().to_string(), "Invalid problem type: x");
    }
}
