variables {
  cluster_name       = "mlops-cluster"
  environment        = "production"
  vpc_cidr           = "10.40.0.0/16"
  zones              = ["us-east-1a", "us-east-1b", "us-east-1c"]
  nat_per_zone       = false
  github_repository  = "owner/repository"
  github_environment = "production"
}

run "networks_do_not_overlap" {
  command = plan

  assert {
    condition     = output.subnets["us-east-1a"].private == "10.40.0.0/20"
    error_message = "the first private network begins where the whole begins"
  }
  assert {
    condition = length(distinct(flatten([
      for subnet in values(output.subnets) : [subnet.private, subnet.public, subnet.database]
    ]))) == 9
    error_message = "three zones have nine different networks"
  }
  assert {
    # Private ones end at .47.255, the others begin at .192.0 and .224.0.
    condition     = output.subnets["us-east-1c"].private == "10.40.32.0/20" && output.subnets["us-east-1a"].public == "10.40.192.0/24"
    error_message = "private and public networks lie apart"
  }
}

run "one_gateway_or_one_a_zone" {
  command = plan

  assert {
    condition     = output.gateways == toset(["us-east-1a"])
    error_message = "one gateway serves all zones unless each is to have its own"
  }
}

run "each_zone_its_gateway" {
  command = plan

  variables {
    nat_per_zone = true
  }

  assert {
    condition     = length(output.gateways) == 3
    error_message = "nat_per_zone gives every zone its own"
  }
}

run "the_smallest_network_that_is_allowed" {
  command = plan

  variables {
    vpc_cidr = "172.20.0.0/18"
    zones    = ["eu-west-1a", "eu-west-1b"]
  }

  assert {
    condition     = output.subnets["eu-west-1b"].private == "172.20.4.0/22"
    error_message = "a /18 gives each zone a /22"
  }
}

run "only_the_repository_in_its_environment_deploys" {
  command = plan

  assert {
    condition     = tolist(output.github_subjects) == tolist(["repo:owner/repository:environment:production"])
    error_message = "the subject names repository and environment"
  }
}

run "nobody_deploys_without_a_repository" {
  command = plan

  variables {
    github_repository = ""
  }

  assert {
    condition     = length(output.github_subjects) == 0
    error_message = "no repository, no role"
  }
}

run "capitals_in_the_name_are_refused" {
  command         = plan
  expect_failures = [var.cluster_name]

  variables {
    cluster_name = "MLOps"
  }
}

run "too_small_a_network_is_refused" {
  command         = plan
  expect_failures = [var.vpc_cidr]

  variables {
    vpc_cidr = "10.0.0.0/24"
  }
}

run "one_zone_is_refused" {
  command         = plan
  expect_failures = [var.zones]

  variables {
    zones = ["us-east-1a"]
  }
}

run "a_repository_without_owner_is_refused" {
  command         = plan
  expect_failures = [var.github_repository]

  variables {
    github_repository = "repository"
  }
}
