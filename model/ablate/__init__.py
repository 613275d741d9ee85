"""The paper's ablations as commands: tables of recipes, run within a budget, put beside the paper's figures."""
