# The tasks of this project; `make` lists them.
.DEFAULT_GOAL := help
PY := .venv/bin/python
# Guests and daemons are waited for half of the time, which other tests can use. In the order of the
# files: the longest tests are not among the last then.
SIDE_BY_SIDE := -n 2 --dist loadscope --no-loadscope-reorder
# Bytecode is kept below build/, also where the environment forbids it: daemons start a third sooner.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/bytecode
export PYTHONDONTWRITEBYTECODE :=
.PHONY: help setup docs demo debian-guest image test test-fast lint format proto bench fuzz lock audit golden site picture deb clean

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install what demo and tests need (a second when nothing is missing)
	@hack/setup.sh

demo: setup ## boot a VM as a pod and take it away again (KEEP=1 leaves it running, WARM=1 compares starts)
	@$(PY) -m virtlet.cli.main demo

debian-guest: setup ## build/debian.qcow2, a Debian 13 with cloud-init (minutes; the tests do it themselves)
	@images/debian/build.sh build/debian.qcow2

image: setup ## build/virtlet-image.tar, the container image of a node's parts (two minutes; seconds when only code changed)
	@images/node/build.sh build/virtlet-image.tar

test: setup ## all tests: unit, integration, end to end
	@$(PY) hack/run_tests.py $(SIDE_BY_SIDE)

test-fast: setup ## the tests that boot no pod
	@$(PY) hack/run_tests.py $(SIDE_BY_SIDE) -m 'not e2e'

lint: setup ## ruff, mypy, import contracts, spelling
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --config setup.cfg
	.venv/bin/codespell

format: setup ## format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

proto: setup ## make the CRI stubs from proto/
	$(PY) -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/virtlet/cri/api.proto
	$(PY) -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. proto/virtlet/cri/csi/*.proto

docs: setup ## write the pages, the policy, the dashboard and the cluster's manifests that are made from the code
	$(PY) hack/document_settings.py > docs/settings.md.new && mv docs/settings.md.new docs/settings.md
	$(PY) hack/document_flavors.py > docs/flavors.md.new && mv docs/flavors.md.new docs/flavors.md
	$(PY) hack/document_admission.py > deploy/cluster/virtletadmission.yaml.new && mv deploy/cluster/virtletadmission.yaml.new deploy/cluster/virtletadmission.yaml
	$(PY) hack/document_dashboard.py > deploy/monitoring/dashboard.json.new && mv deploy/monitoring/dashboard.json.new deploy/monitoring/dashboard.json
	kubectl kustomize deploy/cluster > virtlet/kubectl/manifests/cluster.yaml.new && mv virtlet/kubectl/manifests/cluster.yaml.new virtlet/kubectl/manifests/cluster.yaml
	$(PY) hack/document_types.py > docs/types.md.new && mv docs/types.md.new docs/types.md

site: setup ## the documentation as a site, build/site/html/index.html
	@hack/stage_site.sh
	@.venv/bin/mkdocs build --strict --quiet

picture: setup ## run the demo and draw it, docs/pictures/demo.svg
	@$(PY) hack/draw_demo.py

golden: setup ## write the golden documents again; read the difference before committing
	$(PY) -m pytest --refresh-golden -q tests/plugins tests/test_hook_api.py

deb: setup ## build/deb/virtlet.deb, a package for the Debian that this runs on
	@debian/build.sh build/deb

fuzz: setup ## feed mutated inputs for MINUTES=10; findings are in build/fuzz (KEEP=1 adds to the corpus)
	$(PY) -m tests.fuzz $(or $(MINUTES),10)

# Of the shipped installation; `make audit` needs the index or osv.dev to know of vulnerabilities.
LOCK := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-package win-inet-pton --custom-compile-command 'make lock'

lock: setup ## pin dependencies with hashes in requirements.txt and requirements-build.txt (UPGRADE=1 takes newer ones)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[lock]'
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra encryption --extra traces -c constraints.txt setup.cfg -o requirements.txt
	$(LOCK) --extra kubernetes --extra encryption --extra traces -c constraints.txt -c requirements.txt setup.cfg -o images/node/requirements.txt
	echo 'setuptools>=68' | $(LOCK) $(if $(UPGRADE),--upgrade) - -o requirements-build.txt

audit: setup ## ask for known vulnerabilities of what is pinned
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[lock]'
	.venv/bin/pip-audit --strict --require-hashes --disable-pip -r requirements.txt -r requirements-build.txt

bench: setup ## measure, and print the table
	$(PY) -m bench

clean: ## remove what was built
	rm -rf build .venv *.egg-info
