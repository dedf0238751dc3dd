"""The embedded model server: the in-process engine behind SGLang's and OpenAI's protocols."""
