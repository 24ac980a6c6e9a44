"""The OpenAI protocol over HTTP. The only place that knows FastAPI."""
