"""The demo puts one open-loop load on plain SGLang and on Lynx, and reports both."""
