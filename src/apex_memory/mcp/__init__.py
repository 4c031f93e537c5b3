"""The memory for agents by the Model Context Protocol: the tools and resources, and the server over both transports.

`tools` and `answers` define what agents see, once for both transports: the gateway serves it at `/mcp`, and `apex mcp`
over stdio. Both are clients of the HTTP API, so that keys, scopes and limits are the API's. Only `server` needs the
SDK, the package `mcp` (extra `mcp`).
"""
