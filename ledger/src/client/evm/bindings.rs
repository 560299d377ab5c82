//! What `ledger/artifacts` says of the contracts, as Rust: calls, answers, events and errors.

use ethers_contract::abigen;

abigen!(AccessManager, "artifacts/AccessManager.json");
abigen!(ModelRegistry, "artifacts/ModelRegistry.json");
abigen!(NodeRegistry, "artifacts/NodeRegistry.json");
abigen!(PODToken, "artifacts/PODToken.json");
abigen!(PodGovernor, "artifacts/PodGovernor.json");
abigen!(RewardDistributor, "artifacts/RewardDistributor.json");
abigen!(SessionEscrow, "artifacts/SessionEscrow.json");
abigen!(StakeManager, "artifacts/StakeManager.json");
abigen!(TimelockController, "artifacts/TimelockController.json");
abigen!(VoucherCollector, "artifacts/VoucherCollector.json");
