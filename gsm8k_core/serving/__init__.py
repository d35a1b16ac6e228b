"""A model that is talked to: conversations, requests that come while others are answered, and the server."""
