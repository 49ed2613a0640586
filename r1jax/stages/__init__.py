"""The recipe's stages. Each is `run(cfg, task, folder, params, ...) -> params`; they do not import each other."""
