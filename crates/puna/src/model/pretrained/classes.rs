//! What tells the documented classes apart: a name, what their files call the decoder, and a head.

use puna_kernels::Backend;

use super::LlamaClass;
use crate::model::load::{LoadError, Loader};
use crate::model::{
    Linear, LlamaForCausalLM, LlamaForQuestionAnswering, LlamaForSequenceClassification,
    LlamaForTokenClassification, LlamaModel,
};

impl<B: Backend> LlamaClass<B> for LlamaModel<B> {
    const NAME: &'static str = "LlamaModel";
    const PREFIX: &'static str = "";

    fn take(loader: &Loader<'_, B>) -> Result<Self, LoadError> {
        loader.decoder()
    }

    fn decoder(&self) -> &LlamaModel<B> {
        self
    }

    fn decoder_mut(&mut self) -> &mut LlamaModel<B> {
        self
    }

    fn head(&self) -> Option<(&'static str, &Linear<B>)> {
        None
    }
}

impl<B: Backend> LlamaClass<B> for LlamaForCausalLM<B> {
    const NAME: &'static str = "LlamaForCausalLM";
    const PREFIX: &'static str = "model.";
    const GENERATES: bool = true;

    fn take(loader: &Loader<'_, B>) -> Result<Self, LoadError> {
        Ok(Self { lm_head: loader.lm_head()?, model: loader.decoder()? })
    }

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model
    }

    fn decoder_mut(&mut self) -> &mut LlamaModel<B> {
        &mut self.model
    }

    fn head(&self) -> Option<(&'static str, &Linear<B>)> {
        self.lm_head.as_ref().map(|head| ("lm_head", head))
    }

    fn lm_head_mut(&mut self) -> Option<&mut Linear<B>> {
        self.lm_head.as_mut()
    }
}

impl<B: Backend> LlamaClass<B> for LlamaForSequenceClassification<B> {
    const NAME: &'static str = "LlamaForSequenceClassification";
    const PREFIX: &'static str = "model.";

    fn take(loader: &Loader<'_, B>) -> Result<Self, LoadError> {
        let model = loader.decoder()?;
        let score = loader.head("score", model.config.num_labels(), false)?;
        Ok(Self { model, score })
    }

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model
    }

    fn decoder_mut(&mut self) -> &mut LlamaModel<B> {
        &mut self.model
    }

    fn head(&self) -> Option<(&'static str, &Linear<B>)> {
        Some(("score", &self.score))
    }
}

impl<B: Backend> LlamaClass<B> for LlamaForTokenClassification<B> {
    const NAME: &'static str = "LlamaForTokenClassification";
    const PREFIX: &'static str = "model.";

    fn take(loader: &Loader<'_, B>) -> Result<Self, LoadError> {
        let model = loader.decoder()?;
        let score = loader.head("score", model.config.num_labels(), true)?;
        Ok(Self { model, score })
    }

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model
    }

    fn decoder_mut(&mut self) -> &mut LlamaModel<B> {
        &mut self.model
    }

    fn head(&self) -> Option<(&'static str, &Linear<B>)> {
        Some(("score", &self.score))
    }
}

impl<B: Backend> LlamaClass<B> for LlamaForQuestionAnswering<B> {
    const NAME: &'static str = "LlamaForQuestionAnswering";
    const PREFIX: &'static str = "transformer.";

    fn take(loader: &Loader<'_, B>) -> Result<Self, LoadError> {
        let model = loader.decoder()?;
        let qa_outputs = loader.head("qa_outputs", 2, true)?;
        Ok(Self { model, qa_outputs })
    }

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model
    }

    fn decoder_mut(&mut self) -> &mut LlamaModel<B> {
        &mut self.model
    }

    fn head(&self) -> Option<(&'static str, &Linear<B>)> {
        Some(("qa_outputs", &self.qa_outputs))
    }
}
