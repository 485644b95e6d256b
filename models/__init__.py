"""Networks by name: each module offers `Config` and `build(config, *, seed)`.

Modules are named, not imported, so that reading a recipe does not load torch and diffusers.
"""

ARCHITECTURES = {"stunet": "models.stunet", "ssr": "models.ssr"}
