from tests.model.conftest import tokenizer_model

__all__ = ["tokenizer_model"]
