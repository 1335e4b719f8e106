"""The same comparisons on language models (torch, transformers); theory is seen only through files."""
