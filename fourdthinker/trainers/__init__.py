"""DIFT and GRPO on `transformers.Trainer`. Import the module you need; nothing heavy is loaded here."""
