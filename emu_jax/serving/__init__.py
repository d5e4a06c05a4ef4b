"""An HTTP server for one Emu: continuous batching on the device, the OpenAI protocol outside."""
