"""A loopback server that speaks the Gemini Developer API: batch jobs, files, synchronous calls.

It stands behind `backend: local` and `gbrun emulator`, so that the real SDK, the real upload, the
real polling and the real parsing run without an account. It calls no model: its answers are made
from the request alone and say so in `modelVersion`. It refuses what the service refuses.

Start it through `process.start` (a child process) or `server.serve` (a thread).
"""
