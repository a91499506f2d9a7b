"""The HTTP server: what OpenAI's, Anthropic's and Ollama's clients say, over one engine. Closed by default."""
