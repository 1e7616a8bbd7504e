"""gbrun: declarative batch runs on the Gemini Batch API."""

__version__ = "0.1.0"
